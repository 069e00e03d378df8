"""Does a scout beat chance for its bytes? CIFAR-10, replay, a quarter of the samples kept.

`python -m sim scout`: chance, the model's scores and a scout's, at equal steps and as many samples;
and chance again with as many bytes, up and down together, as each of the scouts cost. Clients and
server of the app run in one process, see `sim.in_process`.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from codec import OptionError
from codec.options import Scalar
from fl_app.config import RunConfig
from fl_app.data import Images
from fl_app.server_app import accuracy
from sim import jsonl, tables
from sim.in_process import train_in_process
from strategies import ServerStrategy

Echo = Callable[[str], None]
CLIENTS = 4
COMMON: dict[str, Scalar] = {
    "dataset": "cifar10",
    "model": "small-resnet",
    "step": 0.43,
    "learning-rate": 0.05,
    "max-train-samples": 20000,
    "num-rounds": 4,
    "samples-per-round": 312,
    "server-steps": 250,
    "server-batch-size": 64,
    "scout-steps": 200,
    "pool-factor": 4.0,
}
RANDOM = "random"
CONTENDERS: Mapping[str, Mapping[str, Scalar]] = {
    RANDOM: {"importance": "random"},
    **{
        f"scout, {name}": {"importance": name, "scorer": "scout"}
        for name in ("margin", "entropy", "loss", "grad-norm")
    },
    "scout, margin, 8 bits": {"importance": "margin", "scorer": "scout", "scout-bits": 8},
    "model, margin": {"importance": "margin"},
    "model, loss": {"importance": "loss"},
}
MATCHED = ("scout, margin", "scout, margin, 8 bits")
EQUAL = "random, bytes of "  # chance with as many bytes, up and down, as one of these


@dataclass(frozen=True)
class Point:
    """State of a run after a round.

    Attributes
    ----------
    contender : str
    model : str
    seed, round, step : int
        Step counts the optimizer's.
    accuracy : float
        On the test set, a fraction.
    uplink_bytes, downlink_bytes, samples_sent : int
        So far, of all clients.
    scores_seconds : float
        What scoring has taken so far, of all clients.
    samples_per_round : int
        Of a client, but for chance with the bytes of another.
    """

    contender: str
    model: str
    seed: int
    round: int
    step: int
    accuracy: float
    uplink_bytes: int
    downlink_bytes: int
    samples_sent: int
    scores_seconds: float
    samples_per_round: int

    @property
    def all_bytes(self) -> int:
        """Up and down."""
        return self.uplink_bytes + self.downlink_bytes


def contenders() -> list[str]:
    """Return all contenders, each after those that it depends on."""
    return [*CONTENDERS, *(EQUAL + name for name in MATCHED)]


def compare_scouts(
    folder: Path,
    overrides: Mapping[str, Any],
    seeds: int,
    only: Sequence[str] = (),
    echo: Echo = print,
) -> list[Point]:
    """Run each contender and seed that ``scout-<dataset>.jsonl`` lacks, seed by seed; echo a table.

    Parameters
    ----------
    folder : Path
        Of the results; created with its parents.
    overrides : mapping of str to object
        Run-config keys that go before those of `COMMON`.
    seeds : int
    only : sequence of str
        Contenders; all if empty.
    echo : callable
        Called with each line.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = RunConfig.from_run_config({**COMMON, **overrides})
    path = folder / f"scout-{config.dataset}.jsonl"
    for seed in range(config.seed, config.seed + seeds):
        for contender in only or contenders():
            points = _like(config, read_points(path))
            if any((p.contender, p.seed) == (contender, seed) for p in points):
                continue
            chosen = replace(_configured(config, contender, seed, points), seed=seed)
            found = run_points(chosen, contender, config.samples_per_round, echo)
            jsonl.append_points(path, found)
    points = _like(config, read_points(path))
    for line in table(points):
        echo(line)
    return points


def read_points(path: Path) -> list[Point]:
    """Return the points of a JSONL file; none if there is no such file."""
    return jsonl.read_points(path, Point)


def _like(config: RunConfig, points: Sequence[Point]) -> list[Point]:
    """Return the points of runs with a config's model that send as much."""
    ours = config.model, config.samples_per_round
    return [point for point in points if (point.model, point.samples_per_round) == ours]


def _configured(config: RunConfig, contender: str, seed: int, points: Sequence[Point]) -> RunConfig:
    """Return the run config of a contender, of one seed."""
    if not contender.startswith(EQUAL):
        return RunConfig.from_run_config({**config.to_run_config(), **CONTENDERS[contender]})
    last = {p.contender: p for p in points if p.seed == seed}
    if not {RANDOM, contender.removeprefix(EQUAL)} <= last.keys():
        raise OptionError(
            "only", f"= {contender!r}: run {RANDOM} and {contender.removeprefix(EQUAL)!r} first"
        )
    chance, other = last[RANDOM], last[contender.removeprefix(EQUAL)]
    share = (other.all_bytes - chance.downlink_bytes) / chance.uplink_bytes
    return replace(
        config, importance=RANDOM, samples_per_round=round(config.samples_per_round * share)
    )


def run_points(
    config: RunConfig, contender: str, samples_per_round: int, echo: Echo = print
) -> list[Point]:
    """Train once and return the state after each round."""
    points: list[Point] = []

    def measure(strategy: ServerStrategy, test: Images, server_round: int) -> None:
        _, reached = accuracy(strategy, test)
        ledger = strategy.ledger
        point = Point(
            contender,
            config.model,
            config.seed,
            server_round,
            strategy.steps_taken,
            reached,
            ledger.uplink_bytes,
            ledger.downlink_bytes,
            strategy.book.samples_sent,
            round(strategy.book.seconds.get("client_importance", 0.0), 3),
            samples_per_round,
        )
        echo(
            f"{contender}, seed {config.seed}, round {server_round}: "
            f"accuracy {100 * reached:.2f} %, {point.samples_sent} samples, "
            f"up {point.uplink_bytes:,} B, down {point.downlink_bytes:,} B"
        )
        points.append(point)

    train_in_process(config, CLIENTS, measure)
    return points


def table(points: Sequence[Point]) -> list[str]:
    """Return the result lines: each contender's final accuracy beside chance's."""
    shown = tables.numbers(
        "scores", "samples", "kB up", "kB down", "accuracy %", "over random", "seeds"
    )
    for row in rows(points):
        shown.add_row(*row)
    return tables.lines(shown)


def rows(points: Sequence[Point]) -> list[list[str]]:
    """Return the cells of the table: means, and standard deviations over the seeds."""
    last: dict[str, dict[int, Point]] = {}
    for point in points:
        last.setdefault(point.contender, {})[point.seed] = point  # the last of a seed stays
    chance = last.get(RANDOM, {})
    found = []
    for contender, runs in last.items():
        ends = list(runs.values())
        gains = [
            100 * (point.accuracy - chance[seed].accuracy)
            for seed, point in runs.items()
            if seed in chance
        ]
        found.append(
            [
                contender,
                f"{statistics.mean(point.samples_sent for point in ends):.0f}",
                f"{statistics.mean(point.uplink_bytes for point in ends) / 1000:.0f}",
                f"{statistics.mean(point.downlink_bytes for point in ends) / 1000:.0f}",
                _spread([100 * point.accuracy for point in ends]),
                "-" if contender == RANDOM else _spread(gains),
                str(len(ends)),
            ]
        )
    return found


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.2f} ± {deviation:.2f}"
