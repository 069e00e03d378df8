"""The client of the app: its share of the data and the handler; torch only if a model is needed."""

from functools import cache
from typing import TYPE_CHECKING

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

import clients
from fl_app.config import RunConfig
from fl_app.data import load
from fl_app.partition import partition_indices
from fl_app.registry import STRATEGIES

if TYPE_CHECKING:
    from torch import nn

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Answer one round's request from this node's samples.

    ``context.node_config`` may hold "partition-id" and "num-partitions" (a simulation sets both),
    and "data-dir", the node's own folder, which goes before the run config's.
    """
    config = RunConfig.from_run_config(context.run_config)
    node = context.node_config
    source = node_source(
        config,
        str(node.get("data-dir", config.data_dir)),
        int(node.get("partition-id", 0)),
        int(node.get("num-partitions", 1)),
    )

    def model() -> "nn.Module":
        return _model(config.model, source.samples.shape[1:], source.classes, config.stem)

    return STRATEGIES[config.strategy].answer(msg, context, source, model, config)


# The actors of a simulation live through all rounds and serve many partitions.
_load = cache(load)


@cache
def _model(name: str, sample_shape: tuple[int, ...], classes: int, stem: str) -> "nn.Module":
    """Return one and the same model: each message replaces its state, as drawing takes longer."""
    from fl_app.models import build_model

    return build_model(name, sample_shape, classes, stem=stem)


@cache
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
    indices = partition_indices(
        images.labels,
        partition_id if num_partitions > 1 else 0,
        num_partitions,
        scheme=config.partition,
        alpha=config.dirichlet_alpha,
        max_samples=config.max_train_samples,
        seed=config.seed,
    )
    part = images.select(indices)
    return clients.ArraySource(
        part.samples,
        part.labels,
        part.classes,
        *part.value_range,
        class_names=part.class_names,
        skipped=part.skipped.lost,
    )
