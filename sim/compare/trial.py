"""Trials of hyperparameters in one process, since only their accuracy is needed."""

from collections.abc import Mapping
from pathlib import Path

from fl_app.config import RunConfig
from fl_app.server_app import accuracy
from sim.in_process import train_in_process
from sim.run_config import ConfigValue, read_defaults


def accuracy_in_process(
    run_config: Mapping[str, ConfigValue], app: Path, clients: int
) -> tuple[int, float]:
    """Train by the app's client and strategy; return optimizer steps and test accuracy.

    Runs that are reported take place on Flower's engine instead.

    Parameters
    ----------
    run_config : mapping
        Overrides of the app's run config.
    app : Path
        Folder of the Flower app.
    clients : int
    """
    config = RunConfig.from_run_config({**read_defaults(app), **run_config})
    strategy, test = train_in_process(config, clients)
    _, reached = accuracy(strategy, test)
    return strategy.steps_taken, reached
