"""What the quantized-data strategies share: what a reply of coded samples must be like."""

from collections.abc import Callable
from dataclasses import replace

from flwr.app import Message

from codec import SampleSpec
from strategies.accounted_strategy import RoundResult
from strategies.client_reply import BadReply
from strategies.reply import Expectation, Reply, parse_reply
from strategies.server_model import ServerModel
from strategies.server_strategy import Entries, ServerStrategy


class QuantizedDataStrategy(ServerStrategy[Reply]):
    """Base of the strategies that learn from coded samples.

    A subclass says what to learn from a round's accepted replies, in :meth:`learn`.

    Parameters
    ----------
    expected : Expectation
        What a reply must be like.
    server_model, instruction, sends_model, fraction_train, min_available_nodes, seed, on_round
        See :class:`ServerStrategy`.
    """

    def __init__(
        self,
        server_model: ServerModel,
        instruction: Entries,
        *,
        sends_model: bool,
        expected: Expectation,
        fraction_train: float,
        min_available_nodes: int,
        seed: int,
        on_round: Callable[[RoundResult], None] | None,
    ) -> None:
        super().__init__(
            server_model,
            instruction,
            sends_model=sends_model,
            fraction_train=fraction_train,
            min_available_nodes=min_available_nodes,
            seed=seed,
            on_round=on_round,
        )
        self._expected = expected

    def parse(self, message: Message) -> Reply:
        """Read a reply of coded samples; the first usable payload sets the spec of all."""
        reply = parse_reply(message, self._expected)
        if self._expected.spec is None and reply.payload is not None:
            self._check_model(reply.payload.spec)
            self._expected = replace(self._expected, spec=reply.payload.spec)
        return reply

    def _check_model(self, spec: SampleSpec) -> None:
        """Check the first payload's spec against the model, before it sets the standard."""
        try:
            outputs = self.server_model.probe(spec.shape)
        except Exception as error:  # a module may raise anything on a shape it was not made for
            raise BadReply("shape", f"the model takes no {spec.shape} samples: {error}") from error
        needed = spec.classes or spec.target_size
        if len(outputs) == 1 and outputs[0] < needed:
            raise BadReply("target", f"the model has {outputs[0]} outputs for {needed} targets")
