"""Scouts beside chance: bytes of both directions are counted, and a finished run is kept."""

from pathlib import Path

import pytest

from sim.scout import EQUAL, RANDOM, compare_scouts, contenders

SMALL = {
    "dataset": "mnist5k",
    "model": "logistic",
    "codec": "dct",
    "max-train-samples": 2000,
    "threads": 1,
    "num-rounds": 3,
    "samples-per-round": 40,
    "server-steps": 5,
    "scout-steps": 5,
}


def test_runs_are_counted_and_kept(tmp_path: Path) -> None:
    lines: list[str] = []
    only = [RANDOM, "scout, margin", EQUAL + "scout, margin"]
    assert set(only) <= set(contenders())
    points = compare_scouts(tmp_path, SMALL, 1, only, lines.append)
    last = {point.contender: point for point in points}
    assert [point.round for point in points] == 3 * [1, 2, 3]
    chance, scout, equal = (last[name] for name in only)
    assert chance.samples_sent == scout.samples_sent == 480
    assert scout.downlink_bytes > 10 * chance.downlink_bytes
    assert equal.samples_sent > 1.5 * chance.samples_sent
    # In proportion; larger payloads cost a little less per sample.
    assert equal.all_bytes == pytest.approx(scout.all_bytes, rel=0.25)
    assert scout.scores_seconds > 0 == chance.scores_seconds
    before = (tmp_path / "scout-mnist5k.jsonl").read_text()
    assert compare_scouts(tmp_path, SMALL, 1, only, lines.append) == points
    assert (tmp_path / "scout-mnist5k.jsonl").read_text() == before
    assert any(line.startswith("scout, margin") for line in lines)
    with pytest.raises(ValueError, match="run random and 'scout, loss' first"):
        compare_scouts(tmp_path, SMALL, 1, [EQUAL + "scout, loss"], lines.append)
