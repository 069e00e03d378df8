"""Do the jobs of a preset that have not been done, several at a time if wanted."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from sim.compare.job import Job, Runnable, perform
from sim.compare.presets import Preset
from sim.compare.results import Results, read_results
from sim.launcher import RunError

JPEG_XL_PACKAGE = "imagecodecs"  # of the extra "bench"
_JPEG_XL = ("jpeg-xl", "jpeg-xl-lossless")

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
    """Run the methods of a preset: their searches first, then seed by seed.

    Finished runs and trials are kept in ``<preset>.jsonl`` and not repeated. Each job is a process
    of its own.

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
        Overrides the preset's own number.
    only : iterable of str
        Names of methods; empty means all.
    jobs : int
        How many run at a time, >= 1; several share the cores, so their seconds say less.
    echo : callable
        Called with each line of progress; the jobs print lines of their own.

    Returns
    -------
    Results
        Everything in the file.

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
        missing = [method for method in methods if method.config.get("codec") in _JPEG_XL]
        methods = [method for method in methods if method not in missing]
        for method in missing:
            echo(f"left out: {method.name}, which needs pip install {JPEG_XL_PACKAGE}")
    threads = max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else 0
    for phase in ([None], range(seeds or preset.seeds)):  # runs need what the searches find
        phase_jobs = [
            Job(preset, method, seed, app, path, data_dir, threads)
            for seed in phase
            for method in methods
        ]
        perform_all([job for job in phase_jobs if job.needed()], jobs, echo)
    return read_results(path)


def perform_all(jobs: Sequence[Runnable], at_a_time: int, echo: Echo) -> None:
    """Do the jobs, several at a time; stop all others when one fails.

    Parameters
    ----------
    jobs : sequence of Runnable
        In the order in which they are begun.
    at_a_time : int
    echo : callable
        Called with a line as each begins.

    Raises
    ------
    RunError
        If one fails.
    """
    context = multiprocessing.get_context("spawn")  # a forked torch may hang
    started = time.perf_counter()
    running: dict[SpawnProcess, Runnable] = {}
    waiting = list(jobs)
    try:
        while waiting or running:
            while waiting and len(running) < at_a_time:
                job = waiting.pop(0)
                number = len(jobs) - len(waiting)
                echo(f"[{number}/{len(jobs)}] {job.title}" + _left(number, len(jobs), started))
                process = context.Process(target=perform, args=(job,))
                process.start()
                running[process] = job
            ended = wait([process.sentinel for process in running])
            for process in [process for process in running if process.sentinel in ended]:
                process.join()
                job = running.pop(process)
                if process.exitcode:
                    raise RunError(f"{job.title} failed; what was finished before it is kept")
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.join()


def _left(number: int, count: int, started: float) -> str:
    """Return an estimate of the time left when a job starts, from those before it."""
    if number < 3:
        return ""
    each = (time.perf_counter() - started) / (number - 1)
    return f" (about {each * (count - number + 1) / 60:.0f} minutes left)"
