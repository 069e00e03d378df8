"""What a client works with in a round of streaming or replay, and what it contributes."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from clients.budget import Encoder
from clients.importance import ModelOutputs, model_outputs, score
from clients.selection import Selector, make_selector
from clients.source import SampleSource, source_spec
from codec import Criterion, SampleSpec
from codec.messages import ReplayRequest, StreamingRequest
from codec.random import Stream, client_generator

if TYPE_CHECKING:
    from torch import nn


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
        Partition id, >= 0; with the run's seed and the round it keys all random numbers.
    source : SampleSource
    model : torch.nn.Module or None
        With the server's state loaded; None when the request needs none.
    criterion : callable or None
        Loss for the refinement; see `codec.per_sample_criterion`.
    stage : callable
        From ``"importance"``, ``"encode"`` or ``"refinement"`` to a context that the stage
        runs in; a caller with a clock times it.
    """

    request: RequestT
    client: int
    source: SampleSource
    model: "nn.Module | None" = None
    criterion: Criterion | None = None
    stage: Callable[[str], AbstractContextManager[None]] = _untimed

    def generator(self, stream: Stream | None = None) -> np.random.Generator:
        """Return one of the client's generators of this round."""
        return client_generator(self.request.seed, self.request.server_round, self.client, stream)

    def spec(self) -> SampleSpec:
        """Return the spec of the round's payload."""
        return source_spec(self.source, self.request.codec)

    def encoder(self, spec: SampleSpec, by_label: bool) -> Encoder:
        """Return the round's encoder."""
        key = (self.request.seed, self.client, self.request.server_round)
        return Encoder(spec, key, by_label)

    def selector(
        self,
        samples: NDArray[Any],
        targets: NDArray[Any],
        spec: SampleSpec,
        rng: np.random.Generator,
        outputs: ModelOutputs | None = None,
    ) -> Selector:
        """Score candidates, or take them as equal, and return the request's selector.

        Outputs that are at hand are used; else the model is run.
        """
        request, scores = self.request, np.ones(len(samples))
        if request.needs_scores and self.model is not None:
            with self.stage("importance"):
                if outputs is None:
                    outputs = model_outputs(self.model, samples, low=spec.low, high=spec.high)
                scores = score(request.importance, outputs, targets)
        return make_selector(request.rule, scores, request.uniform_share, rng)


@dataclass(frozen=True)
class Contribution:
    """What a client sends in one round.

    Attributes
    ----------
    data : bytes
        Sample payload; empty when nothing is sent.
    considered : int
        Size of the original minibatch (streaming) or of the pool chosen from (replay).
    sent : (M,) int64 array
        Indices of the samples in `data`, into the source.
    refinement : bytes or None
        Compressed gradient residual.
    memory : list of float32 arrays or None
        Error memory of the compressor, for the next round.
    """

    data: bytes
    considered: int
    sent: NDArray[np.int64]
    refinement: bytes | None = None
    memory: list[NDArray[np.float32]] | None = None


NOTHING = Contribution(b"", 0, np.zeros(0, np.int64))
