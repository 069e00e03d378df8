"""Run what a preset asks for and was not run yet, as many pieces at once as is asked for."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from sim.compare.presets import Preset
from sim.compare.results import Results, read_results
from sim.compare.task import Task, perform
from sim.launcher import RunError

JPEG_XL_PACKAGE = "imagecodecs"  # of the extra "bench"

Echo = Callable[[str], None]


def compare(
    preset: Preset,
    app: Path,
    folder: Path,
    data_dir: str,
    *,
    seeds: int | None = None,
    only: Iterable[str] = (),
    jobs: int = 1,
    echo: Echo = print,
) -> Results:
    """Run the methods of a preset, first their searches, then seed by seed.

    Finished runs and trials are kept in ``<preset>.jsonl`` and not repeated. Each is a process of
    its own.

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
    jobs : int
        Runs at a time, >= 1; several share the CPU's cores, so their seconds say less.
    echo : callable
        Called with each line of progress, beside what the runs print themselves.

    Returns
    -------
    Results
        All of the file.

    Raises
    ------
    RunError
        If a run did not complete; what was finished before is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{preset.name}.jsonl"
    wanted = set(only)
    methods = [method for method in preset.methods if not wanted or method.name in wanted]
    if not find_spec(JPEG_XL_PACKAGE):
        missing = [method for method in methods if method.upload and method.upload[0] == "jpeg-xl"]
        methods = [method for method in methods if method not in missing]
        for method in missing:
            echo(f"left out: {method.name}, which needs pip install {JPEG_XL_PACKAGE}")
    threads = max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else 0
    for phase in ([None], range(seeds or preset.seeds)):  # the winners are needed for the runs
        tasks = [
            Task(preset, method, seed, app, path, data_dir, threads)
            for seed in phase
            for method in methods
        ]
        _perform([task for task in tasks if task.needed()], jobs, echo)
    return read_results(path)


def _perform(tasks: Sequence[Task], jobs: int, echo: Echo) -> None:
    """Do the tasks, `jobs` at a time; stop all others when one fails."""
    context = multiprocessing.get_context("spawn")  # a forked torch may hang
    started = time.perf_counter()
    running: dict[SpawnProcess, Task] = {}
    waiting = list(tasks)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                task = waiting.pop(0)
                number = len(tasks) - len(waiting)
                echo(f"[{number}/{len(tasks)}] {task.title}" + _left(number, len(tasks), started))
                process = context.Process(target=perform, args=(task,))
                process.start()
                running[process] = task
            ended = wait([process.sentinel for process in running])
            for process in [process for process in running if process.sentinel in ended]:
                process.join()
                task = running.pop(process)
                if process.exitcode:
                    raise RunError(f"{task.title} failed; what was finished before it is kept")
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.join()


def _left(number: int, count: int, started: float) -> str:
    """Return an estimate of the time that is left when a task starts, from those before it."""
    if number < 3:
        return ""
    each = (time.perf_counter() - started) / (number - 1)
    return f" (about {each * (count - number + 1) / 60:.0f} minutes left)"
