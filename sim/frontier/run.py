"""Measure the points that are not there yet."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim import jsonl
from sim.compare.job import machine
from sim.compare.runner import Echo, perform_all
from sim.frontier.plans import DATA, Task, run_config
from sim.frontier.points import PATHS, RECIPE, Point, comparable
from sim.run_config import ConfigValue, read_defaults


@dataclass(frozen=True)
class Job:
    """A task, done in a process of its own.

    Attributes
    ----------
    task : Task
    app : Path
        Folder of the Flower app.
    path : Path
        JSONL file that the point is appended to.
    overrides : dict
        Run-config keys that go before the plan's.
    """

    task: Task
    app: Path
    path: Path
    overrides: dict[str, ConfigValue]

    @property
    def title(self) -> str:
        """Name in the lines of progress."""
        return self.task.title

    def values(self) -> dict[str, Any]:
        """Return the whole run config."""
        from fl_app.config import RunConfig

        merged = {**read_defaults(self.app), **run_config(self.task), **self.overrides}
        return dict(RunConfig.from_run_config(merged).to_run_config())

    def needed(self) -> bool:
        """Whether the file has no point of the very same config."""
        asked = comparable(self.values())
        known = jsonl.read_points(self.path, Point)
        return not any(
            (point.method, point.recipe) == (self.task.method, RECIPE)
            and comparable(point.config) == asked
            for point in known
        )

    def perform(self) -> None:
        """Train, and append the point."""
        from fl_app.config import RunConfig
        from fl_app.run_folder import versions
        from fl_app.server_app import accuracy
        from sim.in_process import train_in_process

        values = self.values()
        config = RunConfig.from_run_config(values)
        clients = DATA[self.task.data].clients
        started = time.process_time()
        strategy, test = train_in_process(config, clients)
        _, reached = accuracy(strategy, test, flip=config.test_flip)
        point = Point(
            dataset=config.dataset,
            method=self.task.method,
            config={key: value for key, value in values.items() if key not in PATHS},
            seed=config.seed,
            clients=clients,
            accuracy=reached,
            uplink_bytes=strategy.ledger.uplink_bytes,
            downlink_bytes=strategy.ledger.downlink_bytes,
            samples=strategy.book.samples_sent,
            steps=strategy.steps_taken,
            seconds=time.process_time() - started,
            machine=machine(),
            versions=versions(),
            recipe=RECIPE,
        )
        jsonl.append_points(self.path, [point])
        print(
            f"    {self.title}: {100 * reached:.2f} %, up {point.uplink_bytes:,} B, "
            f"{point.seconds:.0f} CPU s",
            flush=True,
        )


def measure(
    tasks: Iterable[Task],
    app: Path,
    folder: Path,
    overrides: dict[str, ConfigValue],
    jobs: int = 1,
    echo: Echo = print,
) -> None:
    """Measure the points that ``frontier-<data>.jsonl`` lacks.

    Parameters
    ----------
    tasks : iterable of Task
    app : Path
        Folder of the Flower app.
    folder : Path
        Of the results; created with its parents.
    overrides : dict
        Run-config keys that go before the plan's.
    jobs : int
        How many run at a time, >= 1.
    echo : callable
        Called with each line of progress; the jobs print lines of their own.

    Raises
    ------
    RunError
        If a point could not be measured; those before it are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    waiting: Sequence[Job] = [
        Job(task, app, results_file(folder, task.data), overrides) for task in tasks
    ]
    perform_all([job for job in waiting if job.needed()], jobs, echo)


def results_file(folder: Path, data: str) -> Path:
    """Return the file of a data set's points."""
    return folder / f"frontier-{data}.jsonl"


def read_frontier(folder: Path, data: str) -> list[Point]:
    """Return the points that have been measured on a data set."""
    return jsonl.read_points(results_file(folder, data), Point)
