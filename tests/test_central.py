"""Central training on the original samples, the yardstick of the app."""

from dataclasses import replace
from pathlib import Path

import pytest

from fl_app.config import RunConfig
from sim.central import Comparison, beside_central_training, summary, train_centrally
from sim.run_config import RunConfigError

ROOT = Path(__file__).parents[1]
CONFIG = RunConfig(
    model="logistic", augment="none", max_train_samples=500, num_rounds=2, server_steps=40
)


def test_it_learns_and_repeats() -> None:
    lines: list[str] = []
    accuracy = train_centrally(CONFIG, lines.append)
    assert accuracy > 0.7
    assert accuracy == train_centrally(CONFIG, lines.append)
    assert accuracy != train_centrally(replace(CONFIG, seed=1), lines.append)
    assert lines[1].startswith("central, seed 0: 80 steps, accuracy ")


def test_other_strategies_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunConfigError, match="strategy = 'streaming' must be 'replay'"):
        beside_central_training(
            ROOT, {"strategy": "streaming"}, clients=2, seeds=1, folder=tmp_path
        )
    with pytest.raises(RunConfigError, match="step"):
        beside_central_training(ROOT, {"step": -1.0}, clients=2, seeds=1, folder=tmp_path)


def test_summary_gives_mean_and_spread() -> None:
    first = Comparison(
        seed=0,
        central_accuracy=0.75,
        federated_accuracy=0.74,
        gap_points=1.0,
        steps=10,
        bytes_per_sample=99.5,
        uplink_bytes=995,
        samples_sent=10,
        central_seconds=1.0,
        federated_seconds=2.0,
        run_folder="runs/x",
    )
    second = replace(first, seed=1, gap_points=0.0)
    _, row, _, spread = summary([first, second])
    assert row.split() == ["0", "75.00", "74.00", "1.00", "99.5"]
    assert spread.startswith("gap 0.50 +/- 0.71 points")
    assert len(summary([first])) == 2
