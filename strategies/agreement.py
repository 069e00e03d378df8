"""What both ends agree on before a sample is paid for."""

from collections.abc import Sequence
from logging import INFO

from flwr.app import Message
from flwr.common import log
from flwr.serverapp import Grid

from codec import CodecError, DecodeLimits, SampleSpec
from codec.messages import ClientOptions, DescribeRequest, Description, Request, Terms
from codec.options import values_of
from strategies.errors import RunFailed
from strategies.participation import train_messages
from strategies.received import BadReply, read_reply
from strategies.round_book import RoundBook
from strategies.server_model import ServerModel

_NODES_ASKED = 3  # for a description, one after the other


class Agreement:
    """Settles the terms of a run: what samples are like, and that the model can learn from them.

    Parameters
    ----------
    server_model : ServerModel
    request : Request
        What clients will be asked; tells how samples are scaled.
    spec : SampleSpec, optional
        What the samples are. None: a node is asked.
    shape : tuple of int, optional
        Shape that samples must have, whatever a node says.
    class_names : sequence of str
        The server's classes in the order of its labels; empty: those of the node that is asked, if
        it has any.
    limits : DecodeLimits
        What a payload may make the server allocate.
    batch_size : int
        Samples of an optimizer step.
    per_sample : bool
        Whether the loss of each sample is needed, as for importance weights.
    """

    def __init__(
        self,
        server_model: ServerModel,
        request: Request,
        *,
        spec: SampleSpec | None,
        shape: tuple[int, ...] | None,
        class_names: Sequence[str],
        limits: DecodeLimits,
        batch_size: int,
        per_sample: bool,
    ) -> None:
        self._server_model, self._request = server_model, request
        self._spec, self._class_names, self._limits = spec, tuple(class_names), limits
        self._shape = shape
        self._batch_size, self._per_sample = batch_size, per_sample
        self.terms: Terms | None = None

    def settle(
        self,
        server_round: int,
        node_ids: Sequence[int],
        grid: Grid,
        book: RoundBook,
        timeout: float,
    ) -> Terms | None:
        """Return the terms, once they are known; None when nobody has answered yet.

        Parameters
        ----------
        server_round : int
        node_ids : sequence of int
            The round's nodes.
        grid : Grid
        book : RoundBook
            Where what is asked and answered is booked.
        timeout : float
            Seconds to wait for an answer.

        Raises
        ------
        RunFailed
            If no node's samples fit the model; with what each of them said.
        """
        if self.terms is None and node_ids:
            if self._spec is not None:
                self.terms = self._terms_of(self._spec, self._class_names)
            else:
                self.terms = self._ask(server_round, node_ids, grid, book, timeout)
        return self.terms

    def _ask(
        self,
        server_round: int,
        node_ids: Sequence[int],
        grid: Grid,
        book: RoundBook,
        timeout: float,
    ) -> Terms | None:
        problems: list[str] = []
        for node_id in node_ids[:_NODES_ASKED]:
            told = values_of(self._request, ClientOptions)
            request = DescribeRequest(server_round=server_round, **told)
            messages = train_messages([node_id], lambda _, asked=request: asked)  # type: ignore[misc]
            book.ask(server_round, messages)
            replies = list(grid.send_and_receive(messages, timeout=timeout))
            found = book.answers(server_round, replies, _described)
            for description in found:
                try:
                    return self._agreed(node_id, description)
                except CodecError as error:
                    book.reject(node_id, BadReply("fit", str(error)))
                    problems.append(f"node {node_id}: {error}")
            problems += [] if found else book.last_words(node_id)
        if not problems:
            return None  # nobody answered in time: they are asked again in the next round
        raise RunFailed(
            "the clients' samples and the server's model do not fit; nothing was sent. "
            + "; ".join(dict.fromkeys(problems))
        )

    def _agreed(self, node_id: int, described: Description) -> Terms:
        spec = SampleSpec(
            described.shape,
            described.dtype,
            described.low,
            described.high,
            described.classes,
            described.target_size,
        )
        if self._shape is not None and spec.shape != tuple(self._shape):
            raise CodecError(f"samples are {spec.shape}; sample_shape is {self._shape}")
        names = self._class_names or described.class_names
        log(
            INFO,
            "samples of node %d: %s %s in [%g, %g], %s",
            node_id,
            spec.dtype,
            spec.shape,
            spec.low,
            spec.high,
            spec.target_kind,
        )
        return self._terms_of(spec, names)

    def _terms_of(self, spec: SampleSpec, names: Sequence[str]) -> Terms:
        """Rehearse a step on samples of a spec; return the terms that follow."""
        self._server_model.rehearse(
            spec, self._request.scale, self._batch_size, per_sample=self._per_sample
        )
        outputs = self._server_model.probe(spec.shape, spec.dtype)
        count = outputs[0] if len(outputs) == 1 else 0
        if names and count and len(names) > count:
            raise CodecError(
                f"there are {len(names)} class names, the model has {count} outputs; legal: at "
                "most as many names as outputs"
            )
        return Terms(
            shape=spec.shape,
            outputs=count,
            class_names=tuple(names) if spec.classes else (),
            samples=self._limits.samples,
            values=self._limits.values,
        )


def _described(message: Message) -> Description:
    description = read_reply(message, Description)
    if not description.shape:
        raise BadReply("record", "the description names no shape")
    return description
