"""A job of a comparison, done in a process of its own."""

import json
import os
import platform
import re
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn, Protocol

from sim.compare.presets import Method, Preset
from sim.compare.results import Results, Row, append_rows, read_results
from sim.compare.search import search
from sim.launcher import NOTHING_KEPT, RunError, launch
from sim.run_config import ConfigValue
from sim.superlink import interrupt

_EVALUATED = re.compile(r"round \d+/\d+: accuracy .*? %, up [^,]*")
_TUNING_SEED = 1000  # no run that is reported has it
_PATHS = ("out-dir", "data-dir")  # mean nothing on another machine


class Runnable(Protocol):
    """What runs in a process of its own, and prints its own lines there."""

    @property
    def title(self) -> str:
        """Name in the lines of progress."""

    def perform(self) -> None:
        """Do it, and keep what came of it."""


@dataclass(frozen=True)
class Job:
    """A method's preparation, or its run with one seed; what has been done is not repeated.

    Attributes
    ----------
    preset : Preset
    method : Method
    seed : int or None
        None: measure a message and search the hyperparameters.
    app : Path
        Folder of the Flower app.
    path : Path
        JSONL file that results are appended to.
    data_dir : str
        Folder of the data set, or "".
    threads : int
        CPU threads of torch; 0 is the app's own choice.
    """

    preset: Preset
    method: Method
    seed: int | None
    app: Path
    path: Path
    data_dir: str
    threads: int = 0

    @property
    def title(self) -> str:
        """Name in the lines of progress."""
        return self.method.name + (", search" if self.seed is None else f", seed {self.seed}")

    def needed(self) -> bool:
        """Whether there is anything to do.

        A run has to be repeated if a later search, with more values or steps, has found better
        values than it used.
        """
        results = read_results(self.path)
        if self.seed is None and self._lacks_size(results):
            return True
        try:
            best = search(self.method.grid, partial(self._known, results))
        except LookupError:
            return True
        if self.seed is None:
            return False
        run = results.run(self.method.name, self.seed)
        return run is None or not best.items() <= run["config"].items()

    def perform(self) -> None:
        """Do it and append the results."""
        if self.seed is None:
            self._measure_message()
            self._search()
        else:
            self._run(self.seed)

    def _run(self, seed: int) -> None:
        config = self._config(seed, self._search())
        run, points = self.measure(config)
        named = {"method": self.method.name, "seed": seed}
        rows = [{"kind": "run", **named, **run}]
        rows += [{"kind": "point", **named, **point} for point in points]
        append_rows(self.path, rows)
        last = points[-1]
        self._echo(
            f"{100 * last['accuracy']:.2f} %, up {last['uplink_bytes']:,} B, "
            f"{run['wall_seconds']:.0f} s"
        )

    def _lacks_size(self, results: Results) -> bool:
        compresses = self.method.config.get("compressor", "none") != "none"
        return compresses and not results.has_size(self.method.name)

    def _measure_message(self) -> None:
        """Append the size of one message, unless it is there or the method compresses nothing."""
        if not self._lacks_size(read_results(self.path)):
            return
        from sim.compare.sizes import message_size

        size = message_size(self._config(_TUNING_SEED, {}), self.app)
        if size is not None:
            append_rows(self.path, [{"kind": "size", "method": self.method.name, **size}])

    def _search(self) -> dict[str, ConfigValue]:
        """Return the best values of the grid; trials that the file has are not repeated."""
        return search(self.method.grid, self._trial)

    def _known(self, results: Results, values: dict[str, ConfigValue], final: bool) -> float:
        """Return the accuracy of a trial in the file, or raise LookupError."""
        steps = self.preset.trial_steps(self.method, final)
        row = results.trial(self.method.name, values, steps)
        if row is None:
            raise LookupError(f"no trial of {self.method.name} with {values}, {steps} steps")
        return float(row["accuracy"])

    def _trial(self, values: dict[str, ConfigValue], final: bool) -> float:
        with suppress(LookupError):
            return self._known(read_results(self.path), values, final)
        from sim.compare.trial import accuracy_in_process

        steps = self.preset.trial_steps(self.method, final)
        config = self._config(_TUNING_SEED, values, steps)
        taken, accuracy = accuracy_in_process(config, self.app, self.preset.clients)
        trial = {"method": self.method.name, "config": values, "steps": steps}
        append_rows(self.path, [{"kind": "trial", **trial, "accuracy": accuracy}])
        shown = ", ".join(f"{key} = {value}" for key, value in values.items())
        self._echo(f"{shown}: {100 * accuracy:.2f} % after {taken} steps")
        return accuracy

    def _config(
        self, seed: int, values: Mapping[str, ConfigValue], trial_steps: int | None = None
    ) -> dict[str, ConfigValue]:
        config = self.preset.run_config(self.method.with_values(values), seed, trial_steps)
        if self.data_dir:
            config["data-dir"] = self.data_dir
        if self.threads:
            config["threads"] = self.threads
        return config

    def measure(self, config: dict[str, ConfigValue]) -> tuple[Row, list[Row]]:
        """Run the app with overrides of its run config; return the run and its points."""
        out = self.path.parent / "runs" / f"{self.preset.name}-{time.time_ns()}"
        started = time.perf_counter()
        entries = {**config, **NOTHING_KEPT, "out-dir": str(out)}
        launch(self.app, entries, self.preset.clients, self._progress)
        return _read_run(out, time.perf_counter() - started)

    def _progress(self, line: str) -> None:
        """Echo the evaluations from the log of a run, and nothing else of it."""
        found = _EVALUATED.search(line)
        if found:
            self._echo(found[0])

    def _echo(self, line: str) -> None:
        print(f"    {self.title}: {line}", flush=True)


def perform(job: Runnable) -> NoReturn:
    """Do a job and exit: with 0, with 1 and a message on stderr, or with 130."""
    # The terminal's Ctrl-C reaches this process too; the parent passes on what only it gets.
    signal.signal(signal.SIGTERM, interrupt)
    try:
        job.perform()
    except RunError as error:
        print(f"error: {job.title}: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def machine() -> str:
    """Return a description of the machine that the runs were measured on."""
    return f"{platform.machine()}, {os.cpu_count()} cores"


def _read_run(folder: Path, wall: float) -> tuple[Row, list[Row]]:
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    seconds = result["seconds"]
    device = sum(value for name, value in seconds.items() if name.startswith("client_"))
    server = sum(seconds.get(name, 0.0) for name in ("decode", "train"))
    run = {
        "config": {k: v for k, v in result["config"].items() if k not in _PATHS},
        "clients": result["clients"],
        "samples_sent": result["samples_sent"],
        "sections": result["sections"],
        "entropy_bytes": result["entropy_bytes"],
        "failures": result["failures"],
        "device_seconds": device,
        "server_seconds": server,
        "wall_seconds": wall,
        "versions": result["versions"],
        "machine": machine(),
    }
    lines = (folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    points = [
        {
            "step": row["steps"],
            "accuracy": row["accuracy"],
            "uplink_bytes": row["uplink_bytes"],
            "downlink_bytes": row["downlink_bytes"],
        }
        for row in map(json.loads, lines)
        if row["accuracy"] is not None
    ]
    return run, points
