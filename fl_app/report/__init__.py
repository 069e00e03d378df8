"""The report of runs: one page of HTML that needs nothing but itself.

Modules: ``run`` reads a run folder, ``arrived`` its bank, ``originals`` finds what was sent in
the data set, ``scores`` asks the trained model, and ``evidence`` holds it all. ``gallery`` codes
pictures and ``figures`` draws; ``numbers``, ``costs``, ``pictures`` and ``selection`` put it into
words, which ``sections`` orders and ``render`` makes a page of.
"""

from collections.abc import Sequence
from logging import WARNING
from pathlib import Path

from fl_app.report.run import ReportError, read_run

__all__ = ["REPORT", "ReportError", "try_report", "write_report"]

REPORT = "report.html"  # in the run folder


def write_report(folders: Sequence[Path], path: Path) -> Path:
    """Write the report of one run, or of several side by side.

    Parameters
    ----------
    folders : sequence of Path
        Run folders, at least one.
    path : Path
        HTML file, which is replaced.

    Returns
    -------
    Path
        That file.

    Raises
    ------
    ReportError
        If a folder is none of a run, or the file cannot be written; says what to do.
    MissingPackage
        If a package of the role ``app`` is missing.
    """
    from codec.packages import needed_packages

    with needed_packages():
        from fl_app.report.render import page
        from fl_app.report.sections import sections_of
    runs = [read_run(folder) for folder in folders]
    text = page(runs, sections_of(runs))
    new = path.with_name(f".{path.name}.new")
    try:
        new.write_text(text, encoding="utf-8")
        new.replace(path)  # at once: a kill leaves the one before
    except OSError as error:
        new.unlink(missing_ok=True)
        raise ReportError(
            f"cannot write {path}: {error.strerror or error}; name another file with --out"
        ) from error
    return path


def try_report(folder: Path) -> Path | None:
    """Write ``report.html`` into a run folder; a failure is a warning, no failed run."""
    from flwr.common import log

    try:
        return write_report([folder], folder / REPORT)
    except Exception as error:  # whatever it is, the results are there
        log(WARNING, "no report of %s: %s: %s", folder, type(error).__name__, error)
        return None
