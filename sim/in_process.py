"""The app's own server and clients in one process: what Flower's engine adds is left out."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from flwr.app import ArrayRecord, MetricRecord
from flwr.common.logger import FLOWER_LOGGER
from flwr.supercore.task_identity import TaskIdentity

from fl_app.client_app import app as client_app
from fl_app.config import RunConfig
from fl_app.data import Images, load
from fl_app.server_app import make_strategy, set_threads
from sim.direct_grid import DirectGrid
from strategies import ServerStrategy


def train_in_process(
    config: RunConfig,
    clients: int,
    on_round: Callable[[ServerStrategy, Images, int], None] | None = None,
) -> tuple[ServerStrategy, Images]:
    """Train as a run does; starting Flower's engine takes longer than a trial of a small model.

    Messages, and what the ledger counts of them, are those of a run.

    Parameters
    ----------
    config : RunConfig
    clients : int
    on_round : callable, optional
        Called with strategy, test images and round after each round.

    Returns
    -------
    ServerStrategy, Images
        The trained strategy, and the test images.

    Raises
    ------
    Exception
        Whatever a client raises.
    """
    config = replace(config, client_key="partition")  # as the launcher does
    test = load(config.dataset, "test", config.data_dir, config.image_size)
    strategy = make_strategy(config, test.kind)
    set_threads(config.threads, strategy.model)

    def evaluate(server_round: int, _: ArrayRecord) -> MetricRecord | None:
        if on_round is not None and server_round:
            on_round(strategy, test, server_round)
        return None

    with flower_task():
        grid = DirectGrid([client_app] * clients, config.to_run_config())
        strategy.start(grid, num_rounds=config.num_rounds, evaluate_fn=evaluate)
    return strategy, test


@contextmanager
def flower_task() -> Iterator[None]:
    """Let this process make messages, as Flower lets its own tasks; log warnings alone."""
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    level = FLOWER_LOGGER.level
    FLOWER_LOGGER.setLevel(logging.WARNING)
    try:
        yield
    finally:
        FLOWER_LOGGER.setLevel(level)
