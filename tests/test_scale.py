"""The measurement of many clients: its data, its fit, and one small run."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fl_app.data import load
from sim import scale
from sim.cli.options import APP
from sim.run_config import RunConfigError
from sim.scale import FIGURE, Row, draw, exponent, measure_scale, read_rows, report, write_digits

ROW = Row(10, 2, 2, 1.0, 4.0, 3.0, 0.5, 0.5, 6.0, 9_000, 800, 10**8, 10**7, 3.0, 2, "x86_64")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_digits_are_all_different(tmp_path: Path) -> None:
    write_digits(tmp_path, 9_000)
    images = load("fashion-mnist", "train", str(tmp_path))
    assert images.samples.shape == (9_000, 1, 28, 28)
    assert len(np.unique(images.samples.reshape(9_000, -1), axis=0)) == 9_000
    digits = load("mnist5k", "train")
    assert np.array_equal(images.labels[4_000:8_000], digits.labels)


def test_more_samples_than_there_are_digits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunConfigError, match="400000 samples must be at most 324000"):
        write_digits(tmp_path, 400_000)


def test_the_exponent_is_that_of_the_law() -> None:
    clients = [10, 100, 1000]
    assert exponent(clients, [3.0 * n**1.5 for n in clients]) == pytest.approx(1.5)


def test_the_table_says_how_it_grows_and_whether_the_machine_was_busy() -> None:
    rows = [ROW, replace(ROW, clients=100, seconds=40.0, uplink_bytes=90_000, load=0.1)]
    text = "\n".join(report(rows))
    assert "3.0 (busy)" in text and "0.1 (busy)" not in text
    assert "seconds of the rounds: 1.00; from 10 to 100 1.00" in text
    assert "peak memory: 0.00" in text
    assert "exponents" not in "\n".join(report(rows[:1]))


def test_growth_is_drawn_for_each_number_of_rounds(tmp_path: Path) -> None:
    draw([ROW, replace(ROW, clients=100), replace(ROW, rounds=1)], tmp_path / FIGURE)
    assert (tmp_path / FIGURE).read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_a_small_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(scale, "_LOOK_SECONDS", 0.01)
    measure_scale(tmp_path, APP, [3], 2, 1, {"server-steps": 1}, lines.append)
    (row,) = read_rows(tmp_path)
    assert (row.clients, row.rounds, row.processes) == (3, 2, 1)
    assert 6 * 200 < row.uplink_bytes < 6 * 3_000
    assert row.seconds > 0 < row.cpu_seconds
    assert 3e7 < row.client_bytes < row.server_bytes < row.peak_bytes
    assert lines[0] == "3 clients, 2 rounds, in 1 processes"
    assert lines[1:-2] == ["  round 1/2", "  round 2/2"]
    monkeypatch.setattr(scale, "_measured", None)  # what is there is not measured again
    measure_scale(tmp_path, APP, [3], 2, 1)
