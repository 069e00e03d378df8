"""Flower's own FedAvg, with every byte on the books and model changes compressed if asked for."""

from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass
from functools import partial
from logging import INFO
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from codec import Compression, Criterion
from codec.gradients import GradientCompressor
from codec.gradients.joined import joined
from codec.learning.batch_norm import statistics
from strategies.accounted_strategy import AccountedStrategy, RoundResult
from strategies.client_reply import (
    BadReply,
    ClientReply,
    decoded_statistics,
    decompressed,
    payload_record,
    read_bytes,
    read_integer,
    read_memory_bytes,
    read_seconds,
)
from strategies.options import check_range, is_due
from strategies.server_model import ModelLike, ServerModel

_ARRAYS, _WEIGHT = "arrays", "num-examples"

State = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class ModelReply(ClientReply):
    """A locally trained model that passed every check.

    Attributes
    ----------
    num_examples : int
        Samples of the client.
    model : Message
        The reply as Flower's FedAvg reads it, with the whole model.
    """

    model: Message


class CompressedFedAvg(AccountedStrategy[ModelReply], FedAvg):
    """Federated averaging (McMahan et al., AISTATS 2017) by Flower's own class.

    In each round the clients take `local_steps` steps of SGD, with momentum that starts anew, and
    Flower averages their models by their numbers of samples. Without compression a reply is the
    whole model, as in any Flower project. With it, a reply is the compressed change of the
    trainable parameters, with error feedback on the client where the compressor has it; the server
    adds it to the model that it sent and hands the sum to Flower. ``Compression("qsgd", bits=7)``
    makes changes of int8. Integer buffers are then not sent, and statistics of batch normalization
    in half precision every `buffers_every` rounds and in the last one.

    Parameters
    ----------
    model, criterion, device
        See :class:`ServerModel`; the criterion is that of its ``evaluate``.
    local_steps : int
        Minibatch steps of a client per round, >= 1.
    learning_rate : callable
        From the round, counted from 1, to the learning rate of its steps.
    momentum : float
        Nesterov's, in [0, 1).
    weight_decay : float
        >= 0.
    batch_size : int
        Samples in a minibatch, >= 1.
    compression : Compression or str
        Compressor and rate; a string is the kind, at its default rate.
    buffers_every : int
        Rounds between two evaluations of the model, >= 1.
    buffer_batches : int
        Minibatches for the statistics, >= 1.
    fraction_train : float
        Share of the connected nodes asked in a round, in (0, 1]. Flower draws them, unseeded.
    min_available_nodes : int
        Nodes to wait for before a round, and least number asked.
    seed : int
        Seed of the clients' minibatches, augmentation and compressors, >= 0.
    on_round : callable, optional
        See :class:`AccountedStrategy`, whose attributes it has; steps are local steps.

    Attributes
    ----------
    compressor : GradientCompressor or None
        Decoder of the changes.

    Raises
    ------
    ValueError
        If an option is out of its range; names option, value and range.
    """

    def __init__(
        self,
        model: ModelLike,
        criterion: Criterion | None = None,
        *,
        local_steps: int,
        learning_rate: Callable[[int], float],
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        batch_size: int = 32,
        compression: Compression | str = "none",
        buffers_every: int = 1,
        buffer_batches: int = 4,
        fraction_train: float = 1.0,
        min_available_nodes: int = 1,
        seed: int = 0,
        device: str = "auto",
        on_round: Callable[[RoundResult], None] | None = None,
    ) -> None:
        check_range("local_steps", local_steps, 1)
        check_range("momentum", momentum, 0.0, 0.999)
        check_range("weight_decay", weight_decay, 0.0)
        check_range("batch_size", batch_size, 1)
        check_range("buffers_every", buffers_every, 1)
        check_range("buffer_batches", buffer_batches, 1)
        check_range("fraction_train", fraction_train, 0.0, 1.0, open_low=True)
        check_range("min_available_nodes", min_available_nodes, 1)
        check_range("seed", seed, 0)
        FedAvg.__init__(
            self,
            fraction_train=fraction_train,
            min_train_nodes=min_available_nodes,
            min_available_nodes=min_available_nodes,
            weighted_by_key=_WEIGHT,
            arrayrecord_key=_ARRAYS,
        )
        # The clients step; this optimizer never does.
        idle = partial(torch.optim.SGD, lr=0.0)
        server_model = ServerModel(model, idle, criterion, device=device, amp=False)
        AccountedStrategy.__init__(self, server_model, on_round)
        if isinstance(compression, str):
            compression = Compression(compression)
        self.local_steps = local_steps
        self.learning_rate = learning_rate
        self.buffers_every = buffers_every
        self.buffer_batches = buffer_batches
        compressor = compression.compressor()
        self.compressor = None if compressor is None else joined(compressor)
        self._statistics = statistics(server_model.model)
        self._sent: State = {}
        self._instruction: dict[str, int | float | str] = {
            "seed": seed,
            "batch-size": batch_size,
            "local-steps": local_steps,
            "momentum": momentum,
            "weight-decay": weight_decay,
            **compression.entries(),
        }

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let Flower make the round's instructions, and book them."""
        due = is_due(server_round, self.buffers_every, self.num_rounds)
        entries = {
            **self._instruction,
            "learning-rate": float(self.learning_rate(server_round)),
            "buffers": self.buffer_batches if due and self.compressor and self._statistics else 0,
        }
        config = ConfigRecord({**config, **entries})
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self._sent = {name: array.numpy() for name, array in arrays.items()}
        self.begin_round(server_round, messages)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let Flower average the models that passed every check; None if none did."""
        accepted = self.accept(server_round, replies)
        with self.stage("train"):
            models = [reply.model for reply in accepted]
            averaged, _ = super().aggregate_train(server_round, models)
            if averaged is not None:
                self.server_model.load_arrays(averaged)
                self.server_model.steps_taken += self.local_steps
                averaged = self.server_model.state_arrays()
        return averaged, self.finish_round(server_round, accepted, float("nan"))

    def parse(self, message: Message) -> ModelReply:
        """Decompress and check a reply; `BadReply` if it cannot be used."""
        record = payload_record(message)
        num_examples = read_integer(record, _WEIGHT)
        if not num_examples:
            raise BadReply("count", "num-examples is 0, at least 1 is needed")
        arrays, sections = (
            self._whole_model(message)
            if self.compressor is None
            else self._changed_model(record, self.compressor)
        )
        model = copy(message)
        weight = MetricRecord({_WEIGHT: num_examples})
        model.content = RecordDict({_ARRAYS: arrays, "metrics": weight})
        return ModelReply(
            node_id=message.metadata.src_node_id,
            client=read_integer(record, "client"),
            num_examples=num_examples,
            sections=sections,
            seconds={stage: read_seconds(record, stage) for stage in ("train", "compress")},
            memory_bytes=read_memory_bytes(record),
            model=model,
        )

    def summary(self) -> None:
        """Log the configuration as a tree."""
        count = sum(parameter.numel() for parameter in self.model.parameters())
        log(INFO, "\t├──> Model: %s, %d parameters", type(self.model).__name__, count)
        log(INFO, "\t├──> Instruction:")
        for key, value in self._instruction.items():
            log(INFO, "\t│\t├── %s: %s", key, value)
        super().summary()

    def _whole_model(self, message: Message) -> tuple[ArrayRecord, dict[str, int]]:
        """Return the model in a reply and its bytes."""
        record = message.content.get(_ARRAYS)
        if not isinstance(record, ArrayRecord) or record.keys() != self._sent.keys():
            raise BadReply("record", f"'{_ARRAYS}' must be an ArrayRecord of the model's state")
        for name, sent in self._sent.items():
            try:
                array = record[name].numpy()
            except (TypeError, ValueError, EOFError) as error:
                raise BadReply("record", f"array {name!r}: {error!s:.200}") from error
            if (array.shape, array.dtype) != (sent.shape, sent.dtype):
                found = f"{array.dtype} of shape {array.shape}"
                raise BadReply("shape", f"{name!r} is {found}, not {sent.dtype} of {sent.shape}")
            _require_finite(name, array)
        return record, {_ARRAYS: sum(len(array.data) for array in record.values())}

    def _changed_model(
        self, record: ConfigRecord, compressor: GradientCompressor
    ) -> tuple[ArrayRecord, dict[str, int]]:
        """Return the model that was sent plus the change in a reply, and the reply's bytes."""
        trainable = self.server_model.trainable()
        packed = {"delta": read_bytes(record, "delta")}
        shapes = [tuple(parameter.shape) for parameter in trainable]
        delta = decompressed(packed["delta"], "delta", compressor, shapes)
        change = {id(p): part for p, part in zip(trainable, delta, strict=True)}
        state = dict(self._sent)
        # Shared parameters have several names.
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            if parameter.requires_grad:
                with np.errstate(over="ignore"):
                    state[name] = self._sent[name] + change[id(parameter)]
                _require_finite(name, state[name])
        if "buffers" in record:
            packed["buffers"] = read_bytes(record, "buffers")
            measured = decoded_statistics(packed["buffers"], self._statistics)
            names = {id(tensor): name for name, tensor in self.model.named_buffers()}
            for tensor, array in zip(self._statistics, measured, strict=True):
                state[names[id(tensor)]] = array
        arrays = ArrayRecord({name: Array(np.asarray(value)) for name, value in state.items()})
        return arrays, {key: len(data) for key, data in packed.items()}


def _require_finite(name: str, array: NDArray[Any]) -> None:
    if not np.isfinite(array).all():
        raise BadReply("not-finite", f"{name!r} holds NaN or infinity")
