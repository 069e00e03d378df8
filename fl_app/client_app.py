"""The client of the app: its share of the data and the handler; torch only if a model is needed."""

import time
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

import clients
from clients.device_file import state_folder
from codec.messages import REPLAY
from fl_app.config import RunConfig
from fl_app.data import image_folder, load
from fl_app.growing_folder import GrowingFolder
from fl_app.partition import partition, partitions
from fl_app.registry import STRATEGIES

if TYPE_CHECKING:
    from torch import nn

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Answer one round's request from this node's samples.

    ``context.node_config`` may hold "partition-id" and "num-partitions" (a simulation sets both),
    and "data-dir" and "state-dir", the node's own folders, which go before the run config's.
    """
    config = RunConfig.from_run_config(context.run_config)
    node = context.node_config
    part, parts = int(node.get("partition-id", 0)), int(node.get("num-partitions", 1))
    data_dir = str(node.get("data-dir", config.data_dir))
    folder = growing_folder(config, data_dir, time.time()) if parts == 1 else None
    source: clients.SampleSource
    if folder is None:
        source = arrays = node_source(config, data_dir, part, parts)
        shape = arrays.samples.shape[1:]
    else:
        source, shape = clients.as_source(folder, value_range=(0, 255)), folder.shape

    def model() -> "nn.Module":
        return _model(config.model, shape, source.classes or 0, config.stem, config.width)

    state_dir = str(node.get("state-dir", config.state_dir))
    if parts > 1:  # simulated devices of one machine
        state_dir = str(Path(state_dir or state_folder()) / str(part))
    config = replace(config, state_dir=state_dir)
    return STRATEGIES[config.strategy].answer(msg, context, source, model, config)


def growing_folder(config: RunConfig, data_dir: str, now: float) -> GrowingFolder | None:
    """Return the folder of a node that sends images as they come; None if it has another source.

    Parameters
    ----------
    config : RunConfig
    data_dir : str
        Folder of the data set.
    now : float
        Time, in seconds.

    Raises
    ------
    DataError
        If the folder cannot be listed.
    """
    sends_all = config.strategy == REPLAY and not config.max_train_samples
    if config.dataset != "imagefolder" or not sends_all:
        return None
    return GrowingFolder.of(image_folder(data_dir, config.image_size), "train", now)


# The actors of a simulation live through all rounds and serve many partitions.
_load = cache(load)


@cache
def _model(
    name: str, sample_shape: tuple[int, ...], classes: int, stem: str, width: int
) -> "nn.Module":
    """Return one and the same model: each message replaces its state, as drawing takes longer."""
    from fl_app.models import build_model

    return build_model(name, sample_shape, classes, stem=stem, width=width)


# Of 100,000 partitions none is asked for twice before all others were: they need not all stay.
@lru_cache(256)
def node_source(
    config: RunConfig, data_dir: str, partition_id: int, num_partitions: int
) -> clients.ArraySource:
    """Return the training samples of one node: its partition, or all of its folder.

    Parameters
    ----------
    config : RunConfig
        Says which data set, and how it is split.
    data_dir : str
        Folder of the data set.
    partition_id, num_partitions : int
        With a single partition its number does not matter: the node owns all that it holds.
    """
    images = _load(config.dataset, "train", data_dir, config.image_size)
    parts = _partitions(config, data_dir, num_partitions)
    part = images.select(partition(parts, partition_id if num_partitions > 1 else 0))
    return clients.ArraySource(
        part.samples,
        part.labels,
        part.classes,
        *part.value_range,
        class_names=part.class_names,
        skipped=part.skipped.lost,
    )


@lru_cache(1)  # of all nodes at once: a split takes as long as all of its parts
def _partitions(config: RunConfig, data_dir: str, num_partitions: int) -> list[NDArray[np.int64]]:
    images = _load(config.dataset, "train", data_dir, config.image_size)
    return partitions(
        images.labels,
        num_partitions,
        scheme=config.partition,
        alpha=config.dirichlet_alpha,
        max_samples=config.max_train_samples,
        seed=config.seed,
    )
