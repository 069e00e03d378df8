"""Flower's own FedAvg, with every byte on the books and model changes compressed if asked for."""

from collections.abc import Callable, Iterable, Mapping
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
from codec.gradients.joined import joined
from codec.learning.batch_norm import statistics
from codec.learning.state import plain_name, trainable_names
from codec.messages import (
    ARRAYS,
    AveragingOptions,
    ClientOptions,
    LocalOptions,
    LocalReply,
    LocalRequest,
    OuterOptions,
    Participation,
)
from codec.options import pick, split_options, takes_options, values_of
from codec.random import Stream, server_generator
from strategies.averaging import clipped_model
from strategies.baselines.model_stream import ModelStream
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


@takes_options(
    LocalOptions,
    OuterOptions,
    StatisticsOptions,
    Participation,
    EvaluationOptions,
    AveragingOptions,
)
class CompressedFedAvg(ServerStrategy, FedAvg):
    """Federated averaging (McMahan et al., AISTATS 2017) by Flower's own class.

    In each round the clients take `local_steps` steps of SGD or AdamW, from no momentum, and
    Flower averages their models by their numbers of samples. Without compression a reply is the
    whole model, as in any Flower project. With it, a reply is the compressed change of the
    trainable parameters, with error feedback on the client where the compressor has it; the server
    adds it to the model that it sent and hands the sum to Flower. With
    ``Compression("qsgd", bits=7, bucket=512)`` changes are of int8. Integer buffers are then not
    sent, and statistics of batch normalization in half precision every `buffers_every` rounds and
    in the last one.

    With `outer_momentum`, or an `outer_learning_rate` other than 1, the averaged change is a
    gradient that the server steps along (Reddi et al., ICLR 2021), by SGD with Nesterov's momentum
    as in DiLoCo (Douillard et al., arXiv:2311.08105), where they are 0.9 and 0.7.

    With a `downlink` the server sends its model's changes in place of the model. It keeps what
    clients have, so that what a change leaves out is in the next one, and so does each client, in
    Flower's ``Context.state``. A client that has missed rounds is sent the changes since its own
    model, as they were coded, or the whole model where that is smaller, or where it is not known
    what the client has. Clients do not get the statistics of batch normalization, which training
    does not read.

    Parameters
    ----------
    model, criterion, device
        See `ServerModel`; the criterion is that of its ``evaluate``.
    learning_rate : callable
        From the round, counted from 1, to the learning rate of its steps.
    on_round : callable, optional
        Called with the `RoundResult` at the end of each round; its steps are local steps.

    Attributes
    ----------
    compressor : GradientCompressor or None
        Decoder of the changes.
    stream : ModelStream or None
        What clients have of the model, with a `downlink`.

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
            self.outer,
            self.statistics_options,
            participation,
            evaluation,
            self.averaging,
        ) = split_options(
            options,
            LocalOptions,
            OuterOptions,
            StatisticsOptions,
            Participation,
            EvaluationOptions,
            AveragingOptions,
        )
        self.outer.check_uplink(asked.compression)
        FedAvg.__init__(
            self,
            fraction_train=participation.fraction_train,
            min_train_nodes=participation.min_train_nodes,
            min_available_nodes=participation.min_available_nodes,
            weighted_by_key=WEIGHT,
            arrayrecord_key=ARRAYS,
        )
        momentum = self.outer.outer_momentum
        step = partial(
            torch.optim.SGD,
            lr=self.outer.outer_learning_rate,
            momentum=momentum,
            nesterov=momentum > 0,
        )
        server_model = ServerModel(model, step, criterion, device=device, amp=False)
        client_options = values_of(participation, ClientOptions)
        request = pick(LocalRequest, asked, server_round=1, learning_rate=0.0, **client_options)
        told = (
            asked, self.outer, self.statistics_options, self.averaging, participation, evaluation
        )  # fmt: skip
        book = RoundBook(on_round)
        ServerStrategy.__init__(self, server_model, book, request, told, evaluation, participation)
        self.learning_rate = learning_rate
        self.compressor = request.compressor()
        self._statistics = statistics(server_model.model)
        self._sent = ArrayRecord()
        coder = self.outer.downlink.compressor()
        self.stream = None if coder is None else ModelStream(joined(coder))
        self._names = trainable_names(server_model.model)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the round's nodes the model, or what brings theirs up to date."""
        options = self.statistics_options
        due = self._statistics and self.is_due(server_round, options.buffers_every)
        request = replace(
            self.request,
            server_round=server_round,
            learning_rate=float(self.learning_rate(server_round)),
            buffers=options.buffer_batches if due and self.compressor else 0,
        )
        if self.stream is not None and arrays and not self._are_own(arrays):
            self.stream.reset()
        arrays, config = self.prepare(arrays, config, private=self.compressor is None)
        # Flower itself would wait for ever, ask nodes that are busy, and draw unseeded.
        node_ids = nodes_of_round(
            grid, self.participation, server_round, timeout=self.timeout, busy=self.busy()
        )
        if self.stream is None:
            self._sent = arrays
            messages = train_messages(node_ids, lambda _: request, config, arrays)
        else:
            self._sent = self._publish(self.stream, server_round, arrays)
            messages = self._stream_messages(self.stream, node_ids, request, config)
        self.book.begin(server_round, messages)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let Flower average the models that passed every check; None if none did."""
        accepted = self.collect(server_round, replies, self.read)
        if self.stream is not None:
            for received in accepted:
                assert isinstance(received.reply, LocalReply)
                self.stream.arrived(received.node_id, lacks=received.reply.lacks_model)
        arrays, steps = None, 0
        with self.book.stage("train"):
            clip_norm = self.averaging.clip_norm
            models = [
                (clipped_model(model.arrays, self._sent, clip_norm), model.num_examples)
                for model in accepted
                if model.arrays
            ]
            if models:
                before, steps = self.steps_taken, self.request.local_steps
                self._take(averaged(models))
                self.server_model.steps_taken = before + steps
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

    def own_state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of a downlink; the outer momentum is the optimizer's."""
        return {} if self.stream is None else self.stream.state()

    def restore_own(self, state: Mapping[str, Any]) -> None:
        """Take over what `own_state` returned."""
        if self.stream is not None:
            self.stream.restore(state)

    def summary(self) -> None:
        """Log the configuration as a tree."""
        ServerStrategy.summary(self)
        FedAvg.summary(self)

    def _publish(self, stream: ModelStream, server_round: int, arrays: ArrayRecord) -> ArrayRecord:
        """Return the model as clients have it with the change that is published here."""
        generator = server_generator(self.request.seed, server_round, Stream.SERVER_DOWNLINK)
        stream.publish([arrays[same[0]].numpy() for same in self._names], generator)
        theirs = zip(self._names, map(Array, stream.parameters), strict=True)
        return ArrayRecord({**arrays, **{name: part for same, part in theirs for name in same}})

    def _stream_messages(
        self,
        stream: ModelStream,
        node_ids: Iterable[int],
        request: LocalRequest,
        config: ConfigRecord,
    ) -> list[Message]:
        """Return the messages that bring each node's model up to date, or all of the model."""
        whole_bytes = sum(len(array.data) for array in self._sent.values())
        lacking = {node_id: stream.since(node_id, whole_bytes) for node_id in node_ids}
        whole = replace(request, versions=stream.version)
        requests = {
            node_id: replace(request, versions=found[0], updates=found[1])
            for node_id, found in lacking.items()
            if found is not None
        }
        strangers = [node_id for node_id in lacking if node_id not in requests]
        return [
            *train_messages(strangers, lambda _: whole, config, self._sent),
            *train_messages(requests, requests.__getitem__, config),
        ]

    def _take(self, mean: ArrayRecord) -> None:
        """Make the average of the clients' models the server's, or step towards it."""
        outer = self.outer
        if self.stream is None and outer.outer_learning_rate == 1 and not outer.outer_momentum:
            self.server_model.load_arrays(mean)
            return
        # What clients do not change must not differ from theirs by the rounding of a mean.
        measured = set(map(id, self._statistics))
        taken = {
            plain_name(name): mean[plain_name(name)]
            for name, tensor in self.model.named_buffers()
            if plain_name(name) in mean and (self.compressor is None or id(tensor) in measured)
        }
        self.server_model.load_arrays(ArrayRecord({**self.current_arrays(), **taken}))
        pairs = [(self._sent[same[0]].numpy(), mean[same[0]].numpy()) for same in self._names]
        self.server_model.apply_gradient([torch.as_tensor(sent - new) for sent, new in pairs])

    def _set_learning_rate(self, key: str, value: object) -> None:
        """Warn: neither the clients' steps nor the server's take it."""
        self._warn(key, "has no effect: pass learning_rate, of the clients' steps")

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
        state: State = {}
        for same, change in zip(self._names, delta, strict=True):
            with np.errstate(over="ignore"):
                values = self._sent[same[0]].numpy() + change
            require_finite(same[0], values)
            state |= dict.fromkeys(same, values)
        return state

    def _measured_statistics(self, data: bytes) -> State:
        measured = decoded_statistics(data, self._statistics)
        buffers = self.model.named_buffers()
        names = {id(tensor): plain_name(name) for name, tensor in buffers}
        return {
            names[id(tensor)]: array
            for tensor, array in zip(self._statistics, measured, strict=True)
        }
