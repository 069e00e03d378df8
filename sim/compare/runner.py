"""Run what a preset asks for and was not run yet; one JSONL file holds everything."""

import json
import os
import platform
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.compare.presets import Method, Preset
from sim.launcher import launch
from sim.run_config import ConfigValue

Echo = Callable[[str], None]
Row = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """Raw results of a preset.

    Attributes
    ----------
    runs : list of dict
        One for each method and seed: configuration, seconds, bytes by section, versions.
    points : list of dict
        ``method``, ``seed``, ``step``, ``accuracy``, ``uplink_bytes``, ``downlink_bytes``; bytes
        are cumulative, of all clients.
    trials : list of dict
        Of the search over hyperparameters: ``method``, ``config``, ``steps``, ``accuracy``.
    sizes : list of dict
        Of one message of each method that compresses: ``method`` and what
        `sim.compare.sizes.message_size` returns.
    """

    runs: list[Row]
    points: list[Row]
    trials: list[Row]
    sizes: list[Row]

    def done(self, method: str, seed: int) -> bool:
        """Whether a run is there."""
        return any(run["method"] == method and run["seed"] == seed for run in self.runs)

    def trial(self, method: str, config: dict[str, ConfigValue]) -> Row | None:
        """Return a trial that is there."""
        found = (t for t in self.trials if t["method"] == method and t["config"] == config)
        return next(found, None)


def read_results(path: Path) -> Results:
    """Read a JSONL file; a line that an interruption cut off is left out."""
    results = Results([], [], [], [])
    if not path.exists():
        return results
    kinds = {
        "run": results.runs,
        "point": results.points,
        "trial": results.trials,
        "size": results.sizes,
    }
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        kinds[row.pop("kind")].append(row)
    return results


def compare(
    preset: Preset,
    app: Path,
    folder: Path,
    data_dir: str,
    *,
    seeds: int | None = None,
    only: Iterable[str] = (),
    echo: Echo = print,
) -> Results:
    """Run the methods of a preset, seed by seed, and return all results so far.

    Finished runs are kept in ``<preset>.jsonl`` and not repeated.

    Parameters
    ----------
    preset : Preset
    app : Path
        Folder of the Flower app.
    folder : Path
        Of the results; created with its parents.
    data_dir : str
        Folder of the data set, or "".
    seeds : int, optional
        Instead of the preset's own number.
    only : iterable of str
        Names of methods; empty means all.
    echo : callable
        Called with each line of progress.

    Raises
    ------
    RunError
        If a run did not complete; what was finished before is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{preset.name}.jsonl"
    wanted = set(only)
    methods = [method for method in preset.methods if not wanted or method.name in wanted]
    runner = _Runner(preset, app, path, data_dir, echo)
    todo = [(method, seed) for seed in range(seeds or preset.seeds) for method in methods]
    for number, (method, seed) in enumerate(todo, 1):
        if read_results(path).done(method.name, seed):
            continue
        echo(f"[{number}/{len(todo)}] {method.name}, seed {seed}{runner.remaining(todo, number)}")
        runner.run(method, seed)
    return read_results(path)


class _Runner:
    """Runs of one preset, with what is needed to tell how long they will take."""

    def __init__(self, preset: Preset, app: Path, path: Path, data_dir: str, echo: Echo) -> None:
        self.preset, self.app, self.path, self.data_dir = preset, app, path, data_dir
        self.echo = echo

    def run(self, method: Method, seed: int) -> None:
        """Run a method for a seed and append its lines, all at once."""
        self._measure_message(method)
        config = self._config(method, seed) | self._tuned(method)
        run, points = self._measure(method, config)
        named = {"method": method.name, "seed": seed}
        rows = [{"kind": "run", **named, **run}]
        rows += [{"kind": "point", **named, **point} for point in points]
        self._append(rows)
        last = points[-1]
        self.echo(
            f"    {method.name}: {100 * last['accuracy']:.2f} %, up {last['uplink_bytes']:,} B, "
            f"{run['wall_seconds']:.0f} s"
        )

    def remaining(self, todo: list[tuple[Method, int]], number: int) -> str:
        """Return an estimate of the time that is left, from the runs of the file."""
        taken = {run["method"]: run["wall_seconds"] for run in read_results(self.path).runs}
        if not taken:
            return ""
        typical = sum(taken.values()) / len(taken)
        left = sum(taken.get(method.name, typical) for method, _ in todo[number - 1 :])
        return f" (about {left / 60:.0f} minutes left)"

    def _measure_message(self, method: Method) -> None:
        """Append the size of a message of the method, if it is not there and it has one."""
        if any(row["method"] == method.name for row in read_results(self.path).sizes):
            return
        from sim.compare.sizes import message_size

        size = message_size(self._config(method, _TUNING_SEED), self.app)
        if size is not None:
            self._append([{"kind": "size", "method": method.name, **size}])

    def _config(self, method: Method, seed: int, *, tuning: bool = False) -> dict[str, ConfigValue]:
        config = self.preset.run_config(method, seed, tuning=tuning)
        return config | ({"data-dir": self.data_dir} if self.data_dir else {})

    def _tuned(self, method: Method) -> dict[str, ConfigValue]:
        """Return the best value of each key of the method's grid, tried one key at a time."""
        best: dict[str, ConfigValue] = {}
        for key, grid in method.grid.items():
            found: dict[ConfigValue, float] = {}
            values = list(grid)
            while values:
                value = values.pop(0)
                found[value] = self._try(method, {**best, key: value})
                if not values and len(found) < len(grid) + _BEYOND:
                    values = beyond(found)
            best[key] = max(found, key=found.__getitem__)
        return best

    def _try(self, method: Method, trial: dict[str, ConfigValue]) -> float:
        """Return the accuracy of a trial, from the file if it is there."""
        known = read_results(self.path).trial(method.name, trial)
        if known is None:
            self.echo(
                f"    tuning {method.name}: {', '.join(f'{k} = {v}' for k, v in trial.items())}"
            )
            config = self._config(method, _TUNING_SEED, tuning=True)
            _, points = self._measure(method, config | trial)
            last = points[-1]
            known = {"method": method.name, "config": trial}
            known |= {"steps": last["step"], "accuracy": last["accuracy"]}
            self._append([{"kind": "trial", **known}])
        return float(known["accuracy"])

    def _measure(self, method: Method, config: dict[str, ConfigValue]) -> tuple[Row, list[Row]]:
        if method.upload is not None:
            from sim.compare.uploaded import train_uploaded

            run, points = train_uploaded(*method.upload, config, self.app, self.preset.clients)
            return run | {"machine": machine()}, points
        out = self.path.parent / "runs" / f"{self.preset.name}-{time.time_ns()}"
        started = time.perf_counter()
        launch(self.app, config | {"out-dir": str(out)}, self.preset.clients, self._progress)
        return _read_run(out, time.perf_counter() - started)

    def _progress(self, line: str) -> None:
        """Echo what a run says of its evaluations; drop the rest of its log."""
        found = _EVALUATED.search(line)
        if found:
            self.echo(f"      {found[0]}")

    def _append(self, rows: list[Row]) -> None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text)


def beyond(found: Mapping[ConfigValue, float]) -> list[ConfigValue]:
    """Return the value to try next if the best one lies at an end of a geometric grid.

    Parameters
    ----------
    found : mapping of value to accuracy
    """
    tried = sorted(value for value in found if isinstance(value, float))
    if len(tried) < 2:
        return []
    best = max(tried, key=found.__getitem__)
    inner = {tried[0]: tried[1], tried[-1]: tried[-2]}
    return [float(f"{best * best / inner[best]:.6g}")] if best in inner else []


_BEYOND = 2  # values tried beyond a grid at most
_EVALUATED = re.compile(r"round \d+/\d+: accuracy .*? %, up [^,]*")
_TUNING_SEED = 1000  # of no run that is reported
_PATHS = ("out-dir", "data-dir")  # of a machine, not of a result


def machine() -> str:
    """Return what the runs were measured on."""
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
