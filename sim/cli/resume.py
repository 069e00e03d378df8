"""What ``run`` leaves in its folder so that ``run --resume`` can go on."""

from collections.abc import Mapping
from pathlib import Path

from sim.run_config import ConfigValue, RunConfigError

CLIENTS = "clients"


def keep_run(folder: Path, run_config: Mapping[str, ConfigValue], clients: int) -> None:
    """Write a run's config, and how many clients are simulated."""
    from fl_app.run_folder import write_config

    write_config(folder, run_config, **{CLIENTS: clients})


def kept_run(
    folder: Path, overrides: Mapping[str, ConfigValue]
) -> tuple[dict[str, ConfigValue], int]:
    """Return config and clients of the run in a folder, with which it is to go on.

    Parameters
    ----------
    folder : Path
    overrides : Mapping
        Entries that are to be others.

    Raises
    ------
    RunConfigError
        If it is no run's folder, or the run cannot go on so.
    """
    from fl_app.config import ConfigError
    from fl_app.run_folder import RUN_CONFIG, check_same_run, read_config

    try:
        found = read_config(folder)
        known = {**found[RUN_CONFIG], **overrides}
        check_same_run(folder, known)
    except ConfigError as error:
        raise RunConfigError(f"--resume {folder}: {error}") from error
    return known, int(found.get(CLIENTS, 10))
