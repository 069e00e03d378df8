"""The folder that a run writes to."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from sim.cli.options import absolute
from sim.run_config import ConfigValue


@contextmanager
def results_folder(out: str, config: Mapping[str, ConfigValue]) -> Iterator[Path]:
    """Create a folder for results; remove it if the run fails and nothing was written.

    Parameters
    ----------
    out : str
        The folder; empty for a new one under ``runs``.
    config : Mapping
        Run config, whose data set and strategy name a new folder.
    """
    folder = _make_folder(out, config)
    try:
        yield folder
    except BaseException:
        with suppress(OSError):  # what was written before the failure stays
            folder.rmdir()
        raise


def _make_folder(out: str, config: Mapping[str, ConfigValue]) -> Path:
    if out:
        folder = absolute(out)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    labels = [str(config[key]) for key in ("dataset", "strategy") if key in config]
    name = "-".join([f"{datetime.now():%Y%m%d-%H%M%S}", *labels])
    attempt = 1
    while True:
        folder = Path("runs", name if attempt == 1 else f"{name}-{attempt}").absolute()
        with suppress(FileExistsError):  # another launcher in the same second
            folder.mkdir(parents=True)
            return folder
        attempt += 1
