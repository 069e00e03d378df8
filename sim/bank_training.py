"""Any model of the app, trained on what a bank has received: for no further byte on the wire."""

import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fl_app.config import ConfigError, RunConfig
from fl_app.data import DataError, Images, describe
from fl_app.images import ImageKind
from fl_app.run_folder import RunFolder, versions
from fl_app.run_log import RoundClock
from fl_app.server_app import load_test
from fl_app.words import size
from sim import tables
from sim.run_config import ConfigValue, RunConfigError, make_run_config
from sim.server_alone import ALONE, make_server, rounds_alone
from strategies import DivergedError, SampleBank
from strategies.processes import Processes
from strategies.sample_bank import BankDataset

POINTS = "points.jsonl"


@dataclass(frozen=True)
class Point:
    """What came of one training.

    Attributes
    ----------
    values : dict
        Run-config values that set it apart from the others.
    seed : int
    accuracy, loss : float or None
        On the test images; None if there are none, or training diverged.
    steps : int
        Optimizer steps.
    seconds : float
    uplink_bytes, downlink_bytes : int
        On the wire: none.
    problem : str
        Why training came to nothing; empty if it did not.
    """

    values: dict[str, ConfigValue]
    seed: int
    accuracy: float | None
    loss: float | None
    steps: int
    seconds: float
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    problem: str = ""

    @property
    def name(self) -> str:
        """What tables and folders call it, but for the seed."""
        return " ".join(f"{key}={value}" for key, value in self.values.items())


def grid_of(app: Path, axes: Iterable[str]) -> list[dict[str, ConfigValue]]:
    """Return all combinations of ``"KEY=VALUE,VALUE..."``; one, of nothing, without any.

    Raises
    ------
    RunConfigError
        If an axis is none, or a value does not fit its key.
    """
    values: dict[str, list[ConfigValue]] = {}
    for axis in axes:
        key, separator, text = axis.partition("=")
        if not separator or not all(text.split(",")):
            raise RunConfigError(f"--grid {axis!r} must have the form KEY=VALUE,VALUE...")
        if key in values:
            raise RunConfigError(f"--grid has {key} twice; give all its values at once")
        values[key] = [make_run_config(app, [f"{key}={one}"])[key] for one in text.split(",")]
    combinations = itertools.product(*values.values())
    return [dict(zip(values, chosen, strict=True)) for chosen in combinations]


def train_on(
    path: Path,
    config: Mapping[str, ConfigValue],
    points: Sequence[Mapping[str, ConfigValue]],
    seeds: int,
    folder: Path,
    echo: Callable[[str], None] = print,
    processes: Processes = ALONE,
) -> list[Point]:
    """Train a model on a bank for each point and seed, and print what came of it.

    A point that ``points.jsonl`` in the folder has already, of the same config and the same
    samples, is not trained again.

    Parameters
    ----------
    path : Path
        The bank's file; it is read, and another process may write to it.
    config : Mapping
        The run config, as a run has it; `num-rounds` times `server-steps` steps are taken.
    points : sequence of Mapping
        What is different from it; as many trainings.
    seeds : int
        Number of seeds, from the config's own upwards.
    folder : Path
        Gets ``points.jsonl``, and the files of a run: in a folder for each training, if there are
        several.
    echo : callable
        Called with each line of progress and result.
    processes : Processes
        That train together. All have to call; the first one writes and echoes, for the others
        folder and echo are not used.

    Raises
    ------
    RunConfigError
        If the app refuses a config, or it does not fit the samples.
    BankError
        If there is no bank, or it is damaged.
    """
    trainings = [
        (dict(point), _parsed({**config, **point, "seed": seed}))
        for point in points
        for seed in range(int(config["seed"]), int(config["seed"]) + seeds)
    ]
    dataset = SampleBank.open(path)
    for _, one in trainings:
        _check_scale(one, dataset)
    trainings = [(values, replace(one, scale=dataset.scale)) for values, one in trainings]
    test, kind = _test_images(trainings[0][1], dataset)
    if not processes.is_first:
        for _, one in trainings:
            if processes.agreed(False):
                _help(dataset, one, kind, processes)
        return []
    if processes.size > 1:
        echo(f"{processes.size} processes take a part of each minibatch")
    echo(
        f"bank {dataset.id.hex()}: {len(dataset):,} samples, paid for with "
        f"{size(dataset.uplink_bytes)}"
    )
    done = []
    for number, (values, one) in enumerate(trainings, start=1):
        asked = {"bank": dataset.id.hex(), "samples": len(dataset), **one.to_run_config()}
        asked.pop("out-dir")
        point = _known(folder, values, asked)
        if processes.agreed(point is None):
            place = folder
            if len(trainings) > 1:
                parts = [f"{key}={value}" for key, value in values.items()]
                label = ",".join([*parts, f"seed={one.seed}"])
                place = folder / label.replace("/", "_")
                echo(f"training {number} of {len(trainings)}: {label}")
            point = _trained(dataset, values, one, test, kind, place, echo, processes)
            with (folder / POINTS).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"asked": asked, "point": asdict(point)}) + "\n")
        assert point is not None
        done.append(point)
    for line in summary(done, dataset.uplink_bytes):
        echo(line)
    return done


def summary(points: Sequence[Point], paid: int) -> list[str]:
    """Return the table of several trainings, mean and deviation over seeds, and what they cost."""
    named: dict[str, list[Point]] = {}
    for point in points:
        named.setdefault(point.name, []).append(point)
    table = tables.numbers("point", "accuracy %", "+/-", "loss", "steps", "seconds", "uplink")
    best, highest = "", -math.inf
    for name, group in named.items():
        reached = [100 * one.accuracy for one in group if one.accuracy is not None]
        losses = [one.loss for one in group if one.loss is not None]
        whole = len(reached) == len(group)
        if whole and statistics.mean(reached) > highest:
            best, highest = name, statistics.mean(reached)
        problem = next((one.problem for one in group if one.problem), "")
        table.add_row(
            name or "as configured",
            f"{statistics.mean(reached):.2f}" if whole else "diverged" if problem else "-",
            f"{statistics.stdev(reached):.2f}" if whole and len(reached) > 1 else "",
            f"{statistics.mean(losses):.4f}" if len(losses) == len(group) else "",
            f"{statistics.mean(one.steps for one in group):,.0f}",
            f"{sum(one.seconds for one in group):.0f}",
            size(sum(one.uplink_bytes for one in group)),
        )
    lines = tables.lines(table)
    if len(named) > 1 and highest > -math.inf:
        lines.append(f"best: {best}, {highest:.2f} %")
    total = sum(one.uplink_bytes + one.downlink_bytes for one in points)
    count = "1 training" if len(points) == 1 else f"{len(points)} trainings"
    lines.append(
        f"{size(total)} on the wire for {count}; the samples were paid for once, with {size(paid)}"
    )
    return lines


def _trained(
    dataset: BankDataset,
    values: dict[str, ConfigValue],
    config: RunConfig,
    test: Images | None,
    kind: ImageKind,
    place: Path,
    echo: Callable[[str], None],
    processes: Processes,
) -> Point:
    """Train once and leave the files of a run."""
    started = time.perf_counter()
    strategy = make_server(config, kind, SampleBank.of_dataset(dataset), processes)
    clock, problem = RoundClock(config.num_rounds), ""
    with closing(RunFolder(place)) as folder:
        try:
            for record in rounds_alone(strategy, config, test, kind):
                folder.append_round(record)
                line = record.line(config.num_rounds).partition(", up ")[0]
                echo(line + clock.lap(record.round))
                if record.accuracy is not None and record.loss is None:
                    problem = f"the test loss is not finite after round {record.round}"
                if not processes.agreed(not problem):
                    break
        except DivergedError as error:
            problem = str(error)
        if problem:
            echo(f"diverged: {problem}")
        last = folder.rounds[-1] if folder.rounds and not problem else None
        point = Point(
            values,
            config.seed,
            last.accuracy if last else None,
            last.loss if last else None,
            strategy.steps_taken,
            time.perf_counter() - started,
            problem=problem,
        )
        folder.write_result(
            {
                **asdict(point),
                "rounds": last.round if last else len(folder.rounds),
                "bank": {
                    "id": dataset.id.hex(),
                    "samples": len(dataset),
                    "uplink_bytes": dataset.uplink_bytes,
                },
                "config": config.to_run_config(),
                "versions": versions(),
            }
        )
        if not problem:
            folder.write_model(strategy.server_model.inference_model, config.to_run_config())
    return point


def _help(dataset: BankDataset, config: RunConfig, kind: ImageKind, processes: Processes) -> None:
    """Take a part of the steps of `_trained`, which the first process does."""
    strategy = make_server(config, kind, SampleBank.of_dataset(dataset), processes)
    with suppress(DivergedError):  # in all processes at once
        for server_round in range(1, config.num_rounds + 1):
            strategy.learn(server_round)
            if not processes.agreed(True):
                break


def _parsed(values: Mapping[str, ConfigValue]) -> RunConfig:
    try:
        config = RunConfig.from_run_config(values)
    except ConfigError as error:
        raise RunConfigError(str(error)) from error
    if config.strategy != "replay":
        raise RunConfigError(
            f"strategy = {config.strategy!r} must be 'replay': it trains on a bank"
        )
    return config


def _check_scale(config: RunConfig, dataset: BankDataset) -> None:
    """Raise `RunConfigError` if a model would see something else than the bank was made for."""
    if config.scale not in ("auto", dataset.scale):
        raise RunConfigError(
            f"scale = {config.scale!r} must be 'auto', or {dataset.scale!r} as in the bank"
        )


def _test_images(config: RunConfig, dataset: BankDataset) -> tuple[Images | None, ImageKind]:
    """Return test images, if there are any, and what images are like."""
    try:
        test = load_test(config)
        kind = test.kind if test else describe(config.dataset, config.data_dir, config.image_size)
    except DataError as error:
        raise RunConfigError(f"test images, dataset = {config.dataset!r}: {error}") from error
    held = dataset.samples.shape[1:], dataset.classes
    if held != (kind.shape, kind.classes):
        raise RunConfigError(
            f"the bank holds samples of shape {held[0]} of {held[1]} classes; dataset = "
            f"{config.dataset!r} has {kind.shape} of {kind.classes}: name the data set that its "
            "test images are to come from"
        )
    names = tuple(kind.class_names or ())
    if dataset.class_names and names and dataset.class_names != names:
        raise RunConfigError(
            f"the bank's classes are {', '.join(dataset.class_names)}; those of dataset = "
            f"{config.dataset!r} are {', '.join(names)}"
        )
    return test, kind


def _known(
    folder: Path, values: dict[str, ConfigValue], asked: Mapping[str, ConfigValue]
) -> Point | None:
    """Return what an earlier call has found for the very same."""
    path = folder / POINTS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = (row for row in map(json.loads, lines) if row["asked"] == asked)
    return next((Point(**{**row["point"], "values": values}) for row in rows), None)
