"""Importances side by side: bytes and steps are counted, a finished run is not repeated."""

from pathlib import Path

import pytest

from sim.importance import compare_importances, read_points, to_config

SMALL = {
    "dataset": "mnist5k",
    "model": "logistic",
    "max-train-samples": 200,
    "threads": 1,
    "codec": "dct",
}
SHORT = {
    "streaming": {"num-rounds": 4, "eval-every": 2, "batch-size": 16},
    "replay": {"num-rounds": 4, "eval-every": 2, "server-steps": 5, "samples-per-round": 10},
}


@pytest.mark.parametrize("mode", SHORT)
def test_runs_are_counted_and_kept(mode: str, tmp_path: Path) -> None:
    config = to_config(mode, {**SMALL, **SHORT[mode]})
    lines: list[str] = []
    compare_importances(tmp_path, config, mode, 2, ("random", "loss"), lines.append)
    points = read_points(tmp_path / f"importance-{mode}.jsonl")
    assert [(p.importance, p.seed) for p in points[::2]] == [
        ("random", 0), ("loss", 0), ("random", 1), ("loss", 1),
    ]  # fmt: skip
    steps = 5 if mode == "replay" else 1
    assert [p.step for p in points[:2]] == [2 * steps, 4 * steps]
    assert 0 < points[0].uplink_bytes < points[1].uplink_bytes
    # Half of what was looked at: of 4 x 16 samples a round, or of each client's 50.
    assert points[1].samples_sent == pytest.approx(128 if mode == "streaming" else 100, rel=0.3)
    before = (tmp_path / f"importance-{mode}.jsonl").read_text()
    again = compare_importances(tmp_path, config, mode, 2, ("random", "loss"), lines.append)
    assert again == points
    assert (tmp_path / f"importance-{mode}.jsonl").read_text() == before
    assert any(line.startswith("loss") for line in lines)
