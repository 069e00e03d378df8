"""Does a score beat chance? Half of the samples kept by each importance, at equal steps.

Two modes, never mixed: *streaming* pays for a sample each time it is used, *replay* pays once.
Clients and server of the app run in one process here, see `sim.in_process`; bytes are what its
messages deflate to, as in every run.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fl_app.config import RunConfig
from fl_app.data import Images
from fl_app.server_app import accuracy
from sim import jsonl, tables
from sim.in_process import train_in_process
from strategies import ServerStrategy
from strategies.server_strategy import is_due

Echo = Callable[[str], None]
IMPORTANCES = ("random", "loss", "grad-norm", "margin", "entropy")
CLIENTS = 4
KEEP_RATE = 0.5
COMMON = {"keep-rate": KEEP_RATE, "step": 0.43, "learning-rate": 0.05}
MODES: dict[str, dict[str, int | str]] = {
    "streaming": {
        "strategy": "streaming",
        "num-rounds": 400,
        "eval-every": 100,
        "batch-size": 64,
        "augment": "none",  # scores are taken at plain samples
    },
    "replay": {
        "strategy": "replay",
        "num-rounds": 10,
        "server-steps": 100,
        "server-batch-size": 128,
        "samples-per-round": 250,
        "max-train-samples": 20000,
    },
}


@dataclass(frozen=True)
class Point:
    """State of a run at an evaluation.

    Attributes
    ----------
    mode, importance : str
    seed, step : int
        Step counts the optimizer's.
    accuracy : float
        On the test set, a fraction.
    uplink_bytes, samples_sent : int
        So far, of all clients.
    """

    mode: str
    importance: str
    seed: int
    step: int
    accuracy: float
    uplink_bytes: int
    samples_sent: int


def compare_importances(
    folder: Path,
    config: RunConfig,
    mode: str,
    seeds: int,
    importances: Sequence[str] = IMPORTANCES,
    echo: Echo = print,
) -> list[Point]:
    """Run every importance and seed that ``importance-<mode>.jsonl`` lacks; echo the table.

    Parameters
    ----------
    folder : Path
        Of the results; created with its parents.
    config : RunConfig
        Of the first seed; its importance is replaced.
    mode : str
        Key of `MODES`.
    seeds : int
    importances : sequence of str
    echo : callable
        Called with each line.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"importance-{mode}.jsonl"
    for seed in range(config.seed, config.seed + seeds):
        for importance in importances:
            done = {(point.importance, point.seed) for point in read_points(path)}
            if (importance, seed) in done:
                continue
            chosen = replace(config, importance=importance, seed=seed)
            points = run_points(chosen, mode, echo)
            jsonl.append_points(path, points)
    points = read_points(path)
    for line in table(points):
        echo(line)
    return points


def read_points(path: Path) -> list[Point]:
    """Return the points of a JSONL file; none if there is no such file."""
    return jsonl.read_points(path, Point)


def run_points(config: RunConfig, mode: str, echo: Echo = print) -> list[Point]:
    """Train once and return the evaluations."""
    points: list[Point] = []

    def measure(strategy: ServerStrategy, test: Images, server_round: int) -> None:
        if not is_due(server_round, config.eval_every, config.num_rounds):
            return
        _, reached = accuracy(strategy, test)
        uplink, samples = strategy.ledger.uplink_bytes, strategy.book.samples_sent
        step = strategy.steps_taken
        point = Point(mode, config.importance, config.seed, step, reached, uplink, samples)
        echo(
            f"{mode}, {config.importance}, seed {config.seed}: {step} steps, "
            f"accuracy {100 * reached:.2f} %, up {uplink:,} B"
        )
        points.append(point)

    train_in_process(config, CLIENTS, measure)
    return points


def table(points: Sequence[Point]) -> list[str]:
    """Return the result lines: each importance's final accuracy beside random's."""
    last: dict[str, dict[int, Point]] = {}
    for point in points:
        last.setdefault(point.importance, {})[point.seed] = point  # the last of a seed stays
    shown = tables.numbers("importance", "accuracy %", "over random", "kB up", "seeds")
    chance = last.get("random", {})
    for importance, runs in last.items():
        accuracies = [100 * run.accuracy for run in runs.values()]
        gains = [
            100 * (run.accuracy - chance[seed].accuracy)
            for seed, run in runs.items()
            if seed in chance
        ]
        size = statistics.mean(run.uplink_bytes for run in runs.values()) / 1000
        shown.add_row(
            importance, _spread(accuracies), _spread(gains), f"{size:.1f}", str(len(runs))
        )
    return tables.lines(shown)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.2f} +/- {deviation:.2f}"


def to_config(mode: str, overrides: dict[str, Any]) -> RunConfig:
    """Return the run config of a mode; CIFAR-10 and ResNet-18 unless the overrides differ."""
    base: dict[str, Any] = {"dataset": "cifar10", "model": "resnet18", **COMMON, **MODES[mode]}
    return RunConfig.from_run_config({**base, "importance": "random", **overrides})
