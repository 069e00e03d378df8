"""Flower's own FedAvg, with every byte on the books and model changes compressed if asked for."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from codec import Criterion
from codec.gradients import GradientCompressor
from codec.learning.batch_norm import statistics
from codec.learning.state import plain_name
from codec.messages import (
    ARRAYS,
    AveragingOptions,
    ClientOptions,
    LocalOptions,
    LocalReply,
    LocalRequest,
    Participation,
)
from codec.options import pick, split_options, takes_options, values_of
from strategies.averaging import clipped_model
from strategies.baselines.statistics import StatisticsOptions
from strategies.evaluation import EvaluationOptions
from strategies.participation import nodes_of_round, train_messages
from strategies.received import BadReply, decoded_statistics, decompressed, read_reply
from strategies.received_arrays import read_arrays, require_finite
from strategies.received_model import (
    WEIGHT,
    ReceivedModel,
    averaged,
    check_examples,
    read_empty,
)
from strategies.round_book import RoundBook, RoundResult
from strategies.server_model import ModelLike, ServerModel
from strategies.server_strategy import ServerStrategy

State = dict[str, NDArray[Any]]


@takes_options(LocalOptions, StatisticsOptions, Participation, EvaluationOptions, AveragingOptions)
class CompressedFedAvg(ServerStrategy, FedAvg):
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
    learning_rate : callable
        From the round, counted from 1, to the learning rate of its steps.
    on_round : callable, optional
        Called with the :class:`RoundResult` at the end of each round; its steps are local steps.

    Attributes
    ----------
    compressor : GradientCompressor or None
        Decoder of the changes.

    Raises
    ------
    ValueError
        If an option is out of its range; names option, value and range.
    """

    request: LocalRequest

    def __init__(
        self,
        model: ModelLike,
        criterion: Criterion | None = None,
        *,
        learning_rate: Callable[[int], float],
        device: str = "auto",
        on_round: Callable[[RoundResult], None] | None = None,
        **options: Any,
    ) -> None:
        (
            asked,
            self.statistics_options,
            self.participation,
            evaluation,
            self.averaging,
        ) = split_options(
            options,
            LocalOptions,
            StatisticsOptions,
            Participation,
            EvaluationOptions,
            AveragingOptions,
        )
        participation = self.participation
        FedAvg.__init__(
            self,
            fraction_train=participation.fraction_train,
            min_train_nodes=participation.min_train_nodes,
            min_available_nodes=participation.min_available_nodes,
            weighted_by_key=WEIGHT,
            arrayrecord_key=ARRAYS,
        )
        # The clients step; this optimizer never does.
        idle = partial(torch.optim.SGD, lr=0.0)
        server_model = ServerModel(model, idle, criterion, device=device, amp=False)
        client_options = values_of(participation, ClientOptions)
        request = pick(LocalRequest, asked, server_round=1, learning_rate=0.0, **client_options)
        told = (asked, self.statistics_options, self.averaging, participation, evaluation)
        book = RoundBook(on_round)
        ServerStrategy.__init__(
            self, server_model, book, request, told, evaluation, participation.quorum
        )
        self.learning_rate = learning_rate
        self.compressor = request.compressor()
        self._statistics = statistics(server_model.model)
        self._sent = ArrayRecord()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the round's nodes the model."""
        options = self.statistics_options
        due = self._statistics and self.is_due(server_round, options.buffers_every)
        request = replace(
            self.request,
            server_round=server_round,
            learning_rate=float(self.learning_rate(server_round)),
            buffers=options.buffer_batches if due and self.compressor else 0,
        )
        arrays, config = self.prepare(arrays, config, private=self.compressor is None)
        # Flower itself would wait for ever, ask nodes that are busy, and draw unseeded.
        node_ids = nodes_of_round(
            grid, self.participation, server_round, timeout=self.timeout, busy=self.busy()
        )
        messages = train_messages(node_ids, lambda _: request, config, arrays)
        self._sent = arrays
        self.book.begin(server_round, messages)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let Flower average the models that passed every check; None if none did."""
        accepted = self.collect(server_round, replies, self.read)
        arrays, steps = None, 0
        with self.book.stage("train"):
            clip_norm = self.averaging.clip_norm
            models = [
                (clipped_model(model.arrays, self._sent, clip_norm), model.num_examples)
                for model in accepted
                if model.arrays
            ]
            if models:
                self.server_model.load_arrays(averaged(models))
                steps = self.request.local_steps
                self.server_model.steps_taken += steps
                arrays = self.current_arrays()
        return arrays, self.finish(server_round, accepted, steps, float("nan"))

    def read(self, message: Message) -> ReceivedModel:
        """Decompress and check a reply; `BadReply` if it cannot be used."""
        reply = read_reply(message, LocalReply)
        if empty := read_empty(message):
            return empty
        check_examples(reply.num_examples, self.averaging.max_examples)
        arrays, sections = (
            self._whole_model(message)
            if self.compressor is None
            else self._changed_model(reply, self.compressor)
        )
        return ReceivedModel(message.metadata.src_node_id, reply, sections, arrays)

    def summary(self) -> None:
        """Log the configuration as a tree."""
        ServerStrategy.summary(self)
        FedAvg.summary(self)

    def _whole_model(self, message: Message) -> tuple[ArrayRecord, dict[str, int]]:
        """Return the model in a reply and its bytes."""
        record = message.content.get(ARRAYS)
        if not isinstance(record, ArrayRecord):
            raise BadReply("record", f"'{ARRAYS}' must be an ArrayRecord of the model's state")
        return record, {ARRAYS: read_arrays(record, self._sent)}

    def _changed_model(
        self, reply: LocalReply, compressor: GradientCompressor
    ) -> tuple[ArrayRecord, dict[str, int]]:
        """Return the model that was sent plus the change in a reply, and the reply's bytes."""
        if reply.delta is None:
            raise BadReply("record", "'delta' must be bytes, found nothing")
        state = self._changed_parameters(reply.delta, compressor)
        sections = {"delta": len(reply.delta)}
        if reply.buffers is not None:
            state |= self._measured_statistics(reply.buffers)
            sections["buffers"] = len(reply.buffers)
        changed = {name: Array(np.asarray(value)) for name, value in state.items()}
        return ArrayRecord({**self._sent, **changed}), sections

    def _changed_parameters(self, data: bytes, compressor: GradientCompressor) -> State:
        trainable = self.server_model.trainable()
        shapes = [tuple(parameter.shape) for parameter in trainable]
        delta = decompressed(data, "delta", compressor, shapes)
        change = {id(p): part for p, part in zip(trainable, delta, strict=True)}
        state: State = {}
        # Shared parameters have several names.
        for own, parameter in self.model.named_parameters(remove_duplicate=False):
            name = plain_name(own)
            if parameter.requires_grad:
                with np.errstate(over="ignore"):
                    state[name] = self._sent[name].numpy() + change[id(parameter)]
                require_finite(name, state[name])
        return state

    def _measured_statistics(self, data: bytes) -> State:
        measured = decoded_statistics(data, self._statistics)
        buffers = self.model.named_buffers()
        names = {id(tensor): plain_name(name) for name, tensor in buffers}
        return {
            names[id(tensor)]: array
            for tensor, array in zip(self._statistics, measured, strict=True)
        }
