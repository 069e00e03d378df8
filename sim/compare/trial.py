"""Train as a run does, but in one process: for trials of hyperparameters."""

import logging
from collections.abc import Mapping
from pathlib import Path

from flwr.common.logger import FLOWER_LOGGER
from flwr.supercore.task_identity import TaskIdentity

from fl_app.client_app import app as client_app
from fl_app.config import RunConfig
from fl_app.data import load
from fl_app.server_app import make_strategy, set_threads
from sim.direct_grid import DirectGrid
from sim.run_config import ConfigValue, read_defaults


def accuracy_in_process(
    run_config: Mapping[str, ConfigValue], app: Path, clients: int
) -> tuple[int, float]:
    """Train by the app's client and strategy; return optimizer steps and test accuracy.

    Only accuracy is asked of a trial, and starting Flower's engine takes longer than a trial of a
    small model. What is reported runs on the engine.

    Parameters
    ----------
    run_config : mapping
        Overrides of the app's run config.
    app : Path
        Folder of the Flower app.
    clients : int

    Raises
    ------
    Exception
        Whatever a client raises.
    """
    values = {**read_defaults(app), **run_config}
    config = RunConfig.from_run_config(values)
    test = load(config.dataset, "test", config.data_dir, config.image_size)
    strategy = make_strategy(config, test)
    set_threads(config.threads, strategy.model)
    # Flower lets only its own tasks make messages.
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    level = FLOWER_LOGGER.level
    FLOWER_LOGGER.setLevel(logging.WARNING)
    try:
        strategy.start(DirectGrid([client_app] * clients, values), num_rounds=config.num_rounds)
    finally:
        FLOWER_LOGGER.setLevel(level)
    _, accuracy = strategy.server_model.evaluate(test.samples, test.labels, high=255.0)
    return strategy.steps_taken, accuracy
