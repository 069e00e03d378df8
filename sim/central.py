"""The app beside its yardstick: the same model trained centrally on the original samples."""

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fl_app.config import ConfigError, RunConfig
from fl_app.data import load
from fl_app.partition import partitions
from sim import tables
from sim.launcher import NOTHING_KEPT, launch
from sim.run_config import ConfigValue, RunConfigError, read_defaults
from sim.server_alone import make_server, rounds_alone
from strategies import SampleBank


@dataclass(frozen=True)
class Comparison:
    """One seed's federated run beside central training.

    Attributes
    ----------
    seed : int
    central_accuracy, federated_accuracy : float
        On the original test samples, as fractions.
    gap_points : float
        Central minus federated accuracy in percentage points.
    steps : int
        Optimizer steps of each.
    bytes_per_sample : float
        Uplink bytes of the federated run per sample sent.
    uplink_bytes, samples_sent : int
        Of the federated run.
    central_seconds, federated_seconds : float
        Wall time; the federated one includes starting Flower.
    run_folder : str
        Of the federated run.
    """

    seed: int
    central_accuracy: float
    federated_accuracy: float
    gap_points: float
    steps: int
    bytes_per_sample: float
    uplink_bytes: int
    samples_sent: int
    central_seconds: float
    federated_seconds: float
    run_folder: str


def beside_central_training(
    app: Path,
    overrides: Mapping[str, ConfigValue],
    clients: int,
    seeds: int,
    folder: Path,
    echo: Callable[[str], None] = print,
) -> list[Comparison]:
    """Run both for several seeds, print the table and write ``comparison.json``.

    A seed that ``seeds.jsonl`` in the folder already has, of the same config, is not run again.

    Parameters
    ----------
    app : Path
        Folder of this app.
    overrides : Mapping
        Of the app's run config, with absolute paths.
    clients : int
        Simulated clients of the federated run.
    seeds : int
        Number of seeds, from the config's own upwards.
    folder : Path
        Gets ``seeds.jsonl`` (a line as each seed ends), ``comparison.json`` and a run folder per
        seed.
    echo : callable
        Called with each line of progress and result.

    Raises
    ------
    RunConfigError
        On a config that the app refuses, or another strategy than replay.
    RunError
        If a federated run did not complete.
    """
    defaults = read_defaults(app)
    first = _parse({**defaults, **overrides}).seed
    comparisons = []
    for seed in range(first, first + seeds):
        values = {**overrides, "seed": seed, "out-dir": str(folder / f"seed-{seed}")}
        asked = {"clients": clients, **defaults, **values}
        done = _finished(folder, asked)
        if done is None:
            done = _compare_seed(app, _parse({**defaults, **values}), values, clients, echo)
            with (folder / "seeds.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"asked": asked, "comparison": asdict(done)}) + "\n")
        comparisons.append(done)
    for line in summary(comparisons):
        echo(line)
    result = {
        "clients": clients,
        "config": {**defaults, **overrides},
        "seeds": [asdict(comparison) for comparison in comparisons],
    }
    text = json.dumps(result, indent=2)
    (folder / "comparison.json").write_text(text + "\n", encoding="utf-8")
    return comparisons


def train_centrally(config: RunConfig, echo: Callable[[str], None] = print) -> float:
    """Train as the replay server does, on the original samples; return the test accuracy."""
    train = load(config.dataset, "train", config.data_dir, config.image_size)
    if config.max_train_samples:
        (chosen,) = partitions(
            train.labels, 1, max_samples=config.max_train_samples, seed=config.seed
        )
        train = train.select(chosen)
    accuracy = float("nan")
    for steps, accuracy in central_points(config, train.samples, train.labels):
        echo(f"central, seed {config.seed}: {steps} steps, accuracy {100 * accuracy:.2f} %")
    return accuracy


def central_points(
    config: RunConfig, samples: NDArray[np.uint8], labels: NDArray[np.int64]
) -> Iterator[tuple[int, float]]:
    """Train on the given samples and yield steps and test accuracy at each evaluation.

    The replay server's own loop, seed, schedule, augmentation and batch size; the bank holds
    from the first step on what all clients together own.
    """
    test = load(config.dataset, "test", config.data_dir, config.image_size)
    bank = SampleBank()
    bank.add_arrays(samples, labels, low=0.0, high=255.0)
    for record in rounds_alone(make_server(config, test.kind, bank), config, test, test.kind):
        if record.accuracy is not None:
            yield record.steps, record.accuracy


def summary(comparisons: list[Comparison]) -> list[str]:
    """Return the lines of the result table, with mean and spread over the seeds."""
    table = tables.numbers("seed", "central %", "federated %", "gap (points)", "bytes/sample")
    for row in comparisons:
        accuracies = (100 * row.central_accuracy, 100 * row.federated_accuracy)
        shown = [f"{value:.2f}" for value in (*accuracies, row.gap_points)]
        table.add_row(str(row.seed), *shown, f"{row.bytes_per_sample:.1f}")
    lines = tables.lines(table)
    if len(comparisons) > 1:
        gaps = [row.gap_points for row in comparisons]
        lines.append(
            f"gap {statistics.mean(gaps):.2f} +/- {statistics.stdev(gaps):.2f} points "
            f"(mean and standard deviation over {len(gaps)} seeds)"
        )
    return lines


def _compare_seed(
    app: Path,
    config: RunConfig,
    values: Mapping[str, ConfigValue],
    clients: int,
    echo: Callable[[str], None],
) -> Comparison:
    started = time.perf_counter()
    central_accuracy = train_centrally(config, echo)
    between = time.perf_counter()
    launch(app, {**values, **NOTHING_KEPT}, clients, echo)
    ended = time.perf_counter()
    result = json.loads((Path(config.out_dir) / "result.json").read_text(encoding="utf-8"))
    return Comparison(
        seed=config.seed,
        central_accuracy=central_accuracy,
        federated_accuracy=result["accuracy"],
        gap_points=100 * (central_accuracy - result["accuracy"]),
        steps=config.num_rounds * config.server_steps,
        bytes_per_sample=result["bytes_per_sample"],
        uplink_bytes=result["uplink_bytes"],
        samples_sent=result["samples_sent"],
        central_seconds=between - started,
        federated_seconds=ended - between,
        run_folder=config.out_dir,
    )


def _finished(folder: Path, asked: Mapping[str, ConfigValue]) -> Comparison | None:
    """Return what an earlier call has measured for the very same config."""
    path = folder / "seeds.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = (row for row in map(json.loads, lines) if row["asked"] == asked)
    return next((Comparison(**row["comparison"]) for row in rows), None)


def _parse(values: Mapping[str, ConfigValue]) -> RunConfig:
    try:
        config = RunConfig.from_run_config(values)
    except ConfigError as error:
        raise RunConfigError(str(error)) from error
    if config.strategy != "replay":
        raise RunConfigError(f"strategy = {config.strategy!r} must be 'replay' to be compared")
    return config
