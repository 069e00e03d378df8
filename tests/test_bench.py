"""`python -m sim bench` on its smallest cases."""

import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from codec.compilation import is_compiled
from fl_app.data import load
from sim.bench import training
from sim.bench.coding import COMPILED, NUMPY, WEBP
from sim.bench.process_tree import ProcessTree
from sim.bench.report import FIGURE, FILE, SECTIONS, measure_bench, report
from sim.bench.rounds import Rounds
from sim.bench.spread import Spread
from sim.bench.startup import ENGINES, Startup

APP = Path(__file__).parents[1]
TIMES_TWO = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time\\nwhile time.process_time() < 0.6: pass"])
while time.process_time() < 0.6: pass
time.sleep(1.5)
"""


def test_coders_are_timed_beside_webp_at_equal_error(tmp_path: Path) -> None:
    measure_bench(tmp_path, "", ["encoding"], APP, repeats=1, quick=True, echo=lambda _: None)
    rows = json.loads((tmp_path / FILE).read_text())["encoding"]
    coders = {WEBP, NUMPY} | ({COMPILED} if is_compiled() else set())
    assert {row["coder"] for row in rows} == coders
    assert {row["payload"] for row in rows} == {1, 10}
    assert len(report(tmp_path)) == 1 + len(rows)
    assert (tmp_path / FIGURE).stat().st_size > 1000
    for row in rows:
        assert row["encode"] > 0 and row["decode"] > 0
        same = [other for other in rows if other["payload"] == row["payload"]]
        psnr = {other["coder"]: other["psnr"] for other in same}
        assert psnr[WEBP] >= psnr[NUMPY] - 0.01
        if row["coder"] == WEBP:
            assert row["encode_vs_webp"] == {"median": 1, "min": 1, "max": 1, "repeats": 1}
        if row["coder"] == COMPILED:
            assert row["bytes_per_image"] == next(
                other["bytes_per_image"] for other in same if other["coder"] == NUMPY
            )
            assert row["psnr"] == pytest.approx(psnr[NUMPY])


def test_training_is_timed_beside_a_loop_that_learns_as_much() -> None:
    images = load("mnist5k", "train")
    config = training.config_of("logistic", 60, "cpu")
    plain = training.Plain(config, images)
    plain.train(60)
    (row,) = training.measure(images, 1, quick=True)
    assert row.server_vs_plain.median == pytest.approx(row.ours.median / row.plain.median, rel=0.02)
    learned = (plain.model(plain.pixels.float() / 255).argmax(1) == plain.labels).float().mean()
    assert learned > 0.8  # ours: see test_server_model


def test_a_section_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    one = Spread(1.0, 0.5, 2.0, 3)
    rounds = Rounds("31 kB", 10, 5, one, one, one, "a machine")
    start = Startup("flower", one, one, one, "a machine")
    kept = {"rounds": [asdict(rounds)], "startup": [asdict(start)]}
    (tmp_path / FILE).write_text(json.dumps(kept))
    measure_bench(tmp_path, "", ["training"], APP, repeats=1, quick=True, echo=lambda _: None)
    found = json.loads((tmp_path / FILE).read_text())
    assert found.keys() == {"rounds", "startup", "training", "scale"}
    assert found["rounds"] == kept["rounds"]
    shown = "\n".join(report(tmp_path))
    assert "10 clients, model of 31 kB" in shown
    assert "1.00 (0.50 to 2.00)" in shown
    assert "plain PyTorch" in shown


def test_spread_of_ratios_pairs_what_was_measured_together() -> None:
    assert Spread.of_ratios([2, 4, 9], [1, 4, 3]) == Spread(2.0, 1.0, 3.0, 3)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_cpu_time_of_a_tree_counts_children() -> None:
    process = subprocess.Popen([sys.executable, "-c", TIMES_TWO])
    tree = ProcessTree(process.pid)
    while process.poll() is None:
        tree.look()
        time.sleep(0.02)
    assert 1.1 < tree.seconds < 2.5


@pytest.mark.slow
@pytest.mark.simulation
def test_rounds_and_startup_of_real_engines(tmp_path: Path) -> None:
    measure_bench(
        tmp_path, "", ["rounds", "startup"], APP, repeats=1, quick=True, echo=lambda _: None
    )
    found = json.loads((tmp_path / FILE).read_text())
    (rounds,) = found["rounds"]
    ours, fedavg, ratio = (rounds[key]["median"] for key in ("ours", "fedavg", "round_vs_fedavg"))
    assert ratio == pytest.approx(ours / fedavg, rel=0.05)
    assert [row["engine"] for row in found["startup"]] == list(ENGINES)
    for row in found["startup"]:
        assert 0 < row["first_line"]["median"] < row["seconds"]["median"]
        assert row["cpu"]["median"] > 1
    assert len(report(tmp_path)) == 2 + 1 + 3
    assert set(SECTIONS) >= found.keys() - {"scale"}
