"""What streaming and replay have in common: samples are agreed on, asked for and read."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from codec.learning.batch_norm import statistics
from codec.messages import (
    PAYLOAD,
    AveragingOptions,
    ClientOptions,
    DescribeRequest,
    Description,
    MixedOptions,
    Participation,
    ReplayRequest,
    StreamingRequest,
    Terms,
)
from codec.options import Options, values_of
from strategies.agreement import NODES_ASKED, Agreement
from strategies.averaging import clipped_model
from strategies.evaluation import EvaluationOptions
from strategies.expectation import Expectation
from strategies.participation import nodes_of_round, train_messages
from strategies.received import BadReply, Received, read_reply
from strategies.received_gradient import ReceivedGradient, read_gradient
from strategies.received_model import ReceivedModel, averaged, read_host_model
from strategies.received_samples import ReceivedSamples, read_samples
from strategies.round_book import RoundBook
from strategies.server_model import ServerModel
from strategies.server_strategy import ServerStrategy

SampleRequest = StreamingRequest | ReplayRequest

_MODEL, _GRADIENT, _SAMPLES = "model", "gradient", "samples"


class SampleStrategy(ServerStrategy):
    """A strategy that asks for samples; and, in a mixed federation, for models or gradients.

    In a mixed federation the server does not know at first which devices share samples. Requests
    to nodes that have not shown that they do bring the model and how to train it.

    Parameters
    ----------
    server_model, book, request, evaluation
        See `ServerStrategy`.
    agreement : Agreement
        What samples are like.
    expected : Expectation
        What a reply may hold; shape and outputs are as agreed on.
    participation : Participation
        Who is asked.
    mixed : MixedOptions
        Whether devices may answer with a model or a gradient.
    averaging : AveragingOptions
        What bounds the part of one client in an average.
    options : sequence of Options
        What the summary tells besides.
    """

    request: SampleRequest
    takes_gradients = False

    def __init__(
        self,
        server_model: ServerModel,
        book: RoundBook,
        request: SampleRequest,
        evaluation: EvaluationOptions,
        *,
        agreement: Agreement,
        expected: Expectation,
        participation: Participation,
        mixed: MixedOptions,
        averaging: AveragingOptions,
        options: Sequence[Options],
    ) -> None:
        told = (*options, mixed, averaging, evaluation, participation)
        super().__init__(server_model, book, request, told, evaluation, participation)
        self.mixed, self.averaging = mixed, averaging
        self._agreement, self._expected = agreement, expected
        self._sharing: set[int] = set()  # nodes that described or sent samples
        self._private: set[int] = set()  # nodes that sent a model or a gradient instead
        self._early: list[Message] = []  # models and gradients in answer to `DescribeRequest`
        self._sent_model = ArrayRecord()

    @abstractmethod
    def request_to(self, node_id: int, request: Any) -> SampleRequest:
        """Return a round's request with what is a node's own."""

    @abstractmethod
    def train(self, server_round: int, accepted: Sequence[Received]) -> tuple[float, int]:
        """Learn from a round's samples and gradients.

        Returns
        -------
        float, int
            Mean loss, NaN without a step, and how many examples the server's model stands for.
        """

    def must_meet(self, node_id: int) -> bool:
        """Whether a node must describe itself before it is asked for samples."""
        return False

    def met(self, node_id: int, description: Description) -> None:
        """Take note of what a node says of itself."""

    def num_recovered(self) -> int:
        """Return how many replies `recovered` will return."""
        return 0

    def recovered(self, server_round: int) -> Sequence[Received]:
        """Return replies to this round that an earlier process received, once."""
        return ()

    def worth_asking(self, server_round: int, nodes: list[int]) -> list[int]:
        """Return the nodes that there is reason to ask in a round, of those chosen for it."""
        return nodes

    def granted(self, server_round: int, nodes: list[int], connected: set[int]) -> list[int]:
        """Return those of a round's nodes that are asked for samples, once all are known."""
        return nodes

    def question(self, server_round: int) -> DescribeRequest:
        """Return what asks nodes to describe their samples."""
        told = values_of(self.request, ClientOptions)
        bank = self.request.bank if isinstance(self.request, ReplayRequest) else b""
        return DescribeRequest(server_round=server_round, bank=bank, **told)

    def expectation(self, node_id: int) -> Expectation:
        """Return what a node's reply may hold, as far as it does not follow from the terms."""
        return self._expected

    def own_state(self) -> dict[str, Any]:
        """Return what is agreed on, and who shares what."""
        return {
            "agreement": self._agreement.kept(),
            "sharing": self._sharing,
            "private": self._private,
        }

    def restore_own(self, state: Mapping[str, Any]) -> None:
        """Take over what `own_state` returned."""
        self._agreement.restore(state["agreement"])
        self._sharing, self._private = set(state["sharing"]), set(state["private"])

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the round's nodes for their samples, once it is agreed on what these are like."""
        arrays, config = self.prepare(arrays, config)
        self.book.open(server_round)
        self._agreement.state()
        finished = set(self.finished())
        nodes = nodes_of_round(
            grid, self.participation, server_round, finished, self.timeout, self.busy()
        )
        nodes = self.worth_asking(server_round, nodes)
        self._sent_model, self._early = arrays, []
        terms = self._settle(server_round, nodes, config, grid)
        self._meet(server_round, [n for n in nodes if self.must_meet(n)], config, grid)
        answered = {message.metadata.src_node_id for message in self._early}
        # Some owe their description, or it says that nothing is to be asked of them.
        left_out = answered | self.busy() | set(self.finished())
        asked = [
            node_id
            for node_id in nodes
            if node_id not in left_out
            and (terms or node_id in self._private)
            and not self.must_meet(node_id)
        ]
        asked = self.granted(server_round, asked, set(grid.get_node_ids()))
        request = replace(self.request, server_round=server_round, terms=terms or Terms())
        messages: list[Message] = []
        for node_id in asked:
            messages += self._messages([node_id], self.request_to(node_id, request), config)
        self.book.begin(server_round, messages, len(answered) + self.num_recovered())
        return messages

    def _meet(
        self, server_round: int, nodes: Sequence[int], config: ConfigRecord, grid: Grid
    ) -> None:
        """Ask nodes to describe themselves, but for those that say something else anyway."""
        silent = self._private | self.busy()
        asked = [node_id for node_id in nodes if node_id not in silent]
        if asked:
            self._describe(server_round, asked, config, grid)

    def read(self, message: Message) -> Received:
        """Decode and check a reply; `BadReply` if it cannot be used."""
        kind = _kind_of(message)
        if kind == _SAMPLES:
            terms = self._agreement.terms or Terms()
            expected = self.expectation(message.metadata.src_node_id)
            shape = expected.shape or terms.shape or None
            like = self._agreement.spec
            expected = replace(expected, shape=shape, like=like, outputs=terms.outputs)
            return read_samples(message, expected)
        if not self.mixed.mixed:
            raise BadReply("record", f"the reply brings no samples but a {kind}, which mixed takes")
        if kind == _MODEL:
            most, key = self.averaging.max_examples, self.evaluation.weighted_by_key
            return read_host_model(message, self._sent_model, most, key)
        return self._read_gradient(message)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Learn from what arrived; returns the new arrays and the round's metrics."""
        accepted = self.collect(server_round, [*self._early, *replies], self.read)
        self._early = []
        for received in accepted:
            of_samples = isinstance(received, ReceivedSamples)
            (self._sharing if of_samples else self._private).add(received.node_id)
        if recovered := self.recovered(server_round):
            accepted = sorted([*accepted, *recovered], key=lambda one: (one.client, one.node_id))
        before = self.steps_taken
        with self.book.stage("train"):
            loss, examples = self.train(server_round, accepted)
            self._average(accepted, examples)
        metrics = self.finish(server_round, accepted, self.steps_taken - before, loss)
        return self.current_arrays(), metrics

    def _settle(
        self, server_round: int, nodes: Sequence[int], config: ConfigRecord, grid: Grid
    ) -> Terms | None:
        """Return the terms, asking nodes what their samples are like if need be.

        In a mixed federation all are asked at once, since those that share no samples train on
        this request: their replies are kept for the end of the round.
        """
        open_nodes = [node_id for node_id in nodes if node_id not in self._private]

        def ask(asked: Sequence[int]) -> Mapping[int, Description | str]:
            return self._describe(server_round, asked, config, grid)

        most = len(open_nodes) if self.mixed.mixed else NODES_ASKED
        return self._agreement.settle(open_nodes, ask, most=most)

    def _describe(
        self, server_round: int, nodes: Sequence[int], config: ConfigRecord, grid: Grid
    ) -> Mapping[int, Description | str]:
        """Return the descriptions of nodes, or what they said instead; silent ones are left out."""
        messages = self._messages(nodes, self.question(server_round), config)
        self.book.ask(server_round, messages)
        replies = list(grid.send_and_receive(messages, timeout=self.timeout))
        early = [r for r in replies if self.mixed.mixed and _kind_of(r) != _SAMPLES]
        self._early += early
        kept = set(map(id, early))
        answers = self.book.answers(
            server_round,
            [reply for reply in replies if id(reply) not in kept],
            _read_description,
            what="description",
            kept=early,
            unhurried=self._post.unhurried if self._post is not None else (),
        )
        for node_id, answer in answers:
            if isinstance(answer, Description):
                self._sharing.add(node_id)
                self.met(node_id, answer)
        return {n: str(a) if isinstance(a, BadReply) else a for n, a in answers}

    def _messages(
        self, nodes: Sequence[int], request: SampleRequest | DescribeRequest, config: ConfigRecord
    ) -> list[Message]:
        """Return messages, with the model where the request or the node may need it."""
        scored = not isinstance(request, DescribeRequest) and request.needs_model
        messages: list[Message] = []
        for node_id in nodes:
            may_train = self.mixed.mixed and node_id not in self._sharing
            entries = ConfigRecord({**config, **self._local_training()}) if may_train else config
            model = self._sent_model if scored or may_train else None
            messages += train_messages([node_id], lambda _: request, entries, model)
        return messages

    def _local_training(self) -> dict[str, bool | int | float]:
        """Return how devices that share no samples train, as the server's optimizer does."""
        group = self.server_model.optimizer.param_groups[0]
        found = {
            "learning-rate": group.get("lr"),
            "momentum": group.get("momentum"),
            "weight-decay": group.get("weight_decay"),
        }
        numbers = {key: float(value) for key, value in found.items() if value is not None}
        batch_size, steps = self._agreement.batch_size, self.mixed.local_steps
        return {"mixed": True, "batch-size": batch_size, "local-steps": steps, **numbers}

    def _read_gradient(self, message: Message) -> ReceivedGradient:
        if not self.takes_gradients:
            text = "the reply brings a gradient, which streaming takes; replay takes models"
            raise BadReply("record", text)
        shapes = [tuple(parameter.shape) for parameter in self.server_model.trainable()]
        most = self._expected.max_examples
        return read_gradient(message, None, shapes, statistics(self.model), most)

    def _average(self, accepted: Sequence[Received], examples: int) -> None:
        """Make the model the mean of the server's and of those that clients sent."""
        clip_norm = self.averaging.clip_norm
        models = [
            (clipped_model(received.arrays, self._sent_model, clip_norm), received.num_examples)
            for received in accepted
            if isinstance(received, ReceivedModel) and received.arrays
        ]
        if models and examples:
            models.append((self.server_model.state_arrays(), examples))
        if models:
            self.server_model.load_arrays(averaged(models))


def _kind_of(message: Message) -> str:
    """Return what a reply brings: a model, a gradient, or samples (if anything)."""
    if not message.has_content():
        return _SAMPLES
    payload = message.content.get(PAYLOAD)
    keys = payload.keys() if isinstance(payload, ConfigRecord) else ()
    if "samples" in keys or "shape" in keys:
        return _SAMPLES
    if "gradient" in keys:
        return _GRADIENT
    return _MODEL if message.content.array_records or "client" in keys else _SAMPLES


def _read_description(message: Message) -> Description:
    description = read_reply(message, Description)
    if not description.shape:
        raise BadReply("record", "the description names no shape")
    return description
