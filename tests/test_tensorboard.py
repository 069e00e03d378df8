"""Rounds for TensorBoard: what is written is what `rounds.jsonl` has."""

import sys
from pathlib import Path

import pytest
from test_run_folder import record

from codec.packages import MissingPackage
from fl_app.run_folder import RunFolder
from sim.cli.results_folder import TENSORBOARD
from sim.tensorboard import as_scalars


def scalars_in(folder: Path, tag: str) -> list[tuple[int, float]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_rounds_are_written_as_they_are_told(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    lines: list[str] = []
    folder = RunFolder(tmp_path)
    with as_scalars(tmp_path, lines.append) as echo:
        for number in range(3):
            folder.append_round(record(number, None if number == 1 else 0.25 * number))
            echo(f"round {number}/3: accuracy")
            assert scalars_in(tmp_path / TENSORBOARD, "bytes/uplink")[-1][0] == number
        folder.append_round(record(3, 0.75))  # of which no line has told when the run ends
    folder.close()
    assert lines == [f"round {number}/3: accuracy" for number in range(3)]
    written = tmp_path / TENSORBOARD
    assert scalars_in(written, "test/accuracy") == [(0, 0.0), (2, 0.5), (3, 0.75)]
    assert scalars_in(written, "bytes/uplink") == [(n, 40_000.0 * n) for n in range(4)]
    assert scalars_in(written, "test/accuracy over uplink") == [(80_000, 0.5), (120_000, 0.75)]


def test_without_tensorboard_its_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingPackage, match=r"\'\.\[tensorboard\]\'"), as_scalars(tmp_path, print):
        pass
