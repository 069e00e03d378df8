"""What a client works with in a round of streaming or replay, and what it contributes."""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from clients.budget import Encoder
from clients.importance import ModelOutputs, model_outputs, needs_features, score
from clients.reading import Reader
from clients.selection import Selector, make_selector
from clients.source import SampleSource
from codec import CodecError, Criterion, SampleSpec
from codec.learning.inputs import float_inputs
from codec.learning.scout import Scout
from codec.messages import ReplayRequest, StreamingRequest
from codec.random import Stream, client_generator
from codec.samples.choice import Choice

if TYPE_CHECKING:
    from torch import nn

TOO_LARGE = "larger than uplink-budget"  # why a sample is skipped

RequestT = TypeVar("RequestT", bound=StreamingRequest | ReplayRequest)


def _untimed(_: str) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True)
class ClientRound(Generic[RequestT]):
    """What a client works with in one round.

    Attributes
    ----------
    request : StreamingRequest or ReplayRequest
    client : int
        What keys all random numbers, with the run's seed and the round: node or partition id.
    source : SampleSource
    model : torch.nn.Module or None
        With the server's state loaded; None when the request needs none.
    scout : Scout or None
        What scores samples instead (replay).
    criterion : callable or None
        Loss for scores and refinement; see `codec.per_sample_criterion`.
    stage : callable
        From ``"importance"``, ``"encode"`` or ``"refinement"`` to a context that the stage
        runs in; a caller with a clock times it.
    """

    request: RequestT
    client: int
    source: SampleSource
    model: "nn.Module | None" = None
    scout: Scout | None = None
    criterion: Criterion | None = None
    stage: Callable[[str], AbstractContextManager[None]] = _untimed

    @cached_property
    def reader(self) -> Reader:
        """What reads the samples, and knows what they are."""
        return Reader(self.source, self.request.terms)

    def generator(self, stream: Stream | None = None) -> np.random.Generator:
        """Return one of the client's generators of this round."""
        return client_generator(self.request.seed, self.request.server_round, self.client, stream)

    @property
    def scores_samples(self) -> bool:
        """Whether samples are scored, and what scores them is there."""
        there = self.model is not None or self.scout is not None
        return self.request.needs_scores and there

    @property
    def spec(self) -> SampleSpec:
        """What the samples are."""
        return self.reader.kind

    def check(self) -> None:
        """Raise `CodecError` unless the samples are what the request needs."""
        measured = self.reader.declared_range is None and self.spec.dtype != "uint8"
        if self.request.scale == "unit" and measured:
            raise CodecError("scale = 'unit' needs a declared range: pass value_range=(low, high)")

    @property
    def skipped_before(self) -> Mapping[str, int]:
        """Samples that the source left out before, by reason."""
        return dict(getattr(self.source, "skipped", None) or {})

    def encoder(
        self,
        *,
        by_label: bool,
        like: NDArray[Any] | None = None,
        choice: Choice | None = None,
    ) -> Encoder:
        """Return the round's encoder.

        It codes for the spread of samples `like`, if there are any; a choice says what codec
        ``auto`` is.
        """
        key, codec = (self.request.seed, self.client, self.request.server_round), self.request.codec
        like = None if like is None or not len(like) else like
        chosen = choice.options(codec) if choice else codec
        return Encoder(self.reader, chosen, key, by_label, like)

    def selector(
        self,
        samples: NDArray[Any],
        targets: NDArray[Any],
        rng: np.random.Generator,
        outputs: ModelOutputs | None = None,
    ) -> Selector:
        """Score candidates, or take them as equal, and return the request's selector.

        Outputs that are at hand are used; else the model is run.
        """
        request, scores = self.request, np.ones(len(samples))
        if self.scores_samples:
            with self.stage("importance"):
                if outputs is None:
                    outputs = self._outputs(samples)
                # A scout learns by the default criterion, whatever the model's is.
                criterion = self.criterion if self.scout is None else None
                scores = score(request.importance, outputs, targets, criterion)
        return make_selector(request.rule, scores, request.uniform_share, rng)

    def _outputs(self, samples: NDArray[Any]) -> ModelOutputs:
        """Run what scores samples over them."""
        scale = self.request.scale
        if self.scout is not None:
            seen = float_inputs(samples, self.spec, scale)
            return ModelOutputs(*self.scout.outputs(seen), bias=True)
        assert self.model is not None
        features = needs_features(self.request.importance)
        return model_outputs(self.model, samples, self.spec, scale=scale, features=features)


@dataclass(frozen=True)
class Contribution:
    """What a client sends in one round.

    Attributes
    ----------
    payloads : tuple of bytes
        Sample payloads; none when nothing is sent.
    considered : int
        Size of the original minibatch (streaming) or of the pool chosen from (replay).
    sent : (M,) int64 array
        Indices of the samples in `payloads`, into the source.
    fingerprints : (M,) uint64 array
        What they are known by, in the order in which they stand in the payloads; see
        `codec.identity`.
    refinement : bytes or None
        Compressed gradient residual.
    memory : list of float32 arrays or None
        Error memory of the compressor, for the next round.
    variance_kept : float
        Share of the variance of the samples sent that survives.
    clipped : int
        Values clipped to the declared range.
    skipped : Counter of str
        Samples of no use, by reason.
    useless : tuple of int
        Indices of those that cannot be read or used.
    refused : tuple of int
        Indices of those that were read but cannot be sent.
    notes : tuple of str
        What the server should tell its user.
    remaining : int
        Samples that are left to send once these arrive.
    growing : bool
        Whether more may come.
    choice : Choice or None
        What codec ``auto`` is, where it was measured.
    tells_choice : bool
        Whether the server is to be told.
    """

    payloads: tuple[bytes, ...] = ()
    considered: int = 0
    sent: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    fingerprints: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    refinement: bytes | None = None
    memory: list[NDArray[np.float32]] | None = None
    variance_kept: float = 1.0
    clipped: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    useless: tuple[int, ...] = ()
    refused: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    remaining: int = 0
    growing: bool = False
    choice: Choice | None = None
    tells_choice: bool = False
