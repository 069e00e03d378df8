"""One sign per coordinate up, and a vote for each.

Bernstein, Zhao, Azizzadenesheli, Anandkumar: signSGD with Majority Vote is Communication Efficient
And Fault Tolerant, ICLR 2019, algorithm 1. No magnitudes, no error feedback.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from codec.gradients import MAX_COORDINATES, GradientCompressor, Memory, Sign
from codec.gradients.joined import Joined
from codec.gradients.tensors import Array, flatten


@dataclass(frozen=True)
class Ballot(Joined):
    """Bare signs, a bit per coordinate.

    A zero, such as every gradient of a unit that is never active, votes at random: a fixed vote
    would push it for ever. The layout is that of `Sign`, whose one scale is all that is wasted.
    """

    inner: GradientCompressor = field(default_factory=Sign)

    def compress(
        self, gradient: Sequence[Array], memory: Memory | None, generator: np.random.Generator
    ) -> tuple[bytes, None]:
        """See `codec.gradients.GradientCompressor`; nothing is remembered."""
        vector, _ = flatten(gradient)
        zeros = np.flatnonzero(vector == 0)
        vector[zeros] = 2.0 * generator.integers(0, 2, len(zeros)) - 1
        data, _ = super().compress([vector], None, generator)
        return data, None

    def decompress(
        self,
        data: bytes,
        shapes: Sequence[tuple[int, ...]] | None = None,
        limit: int = MAX_COORDINATES,
    ) -> list[Array]:
        """Return the signs, -1 or 1."""
        return [np.sign(part) for part in super().decompress(data, shapes, limit)]


def majority(ballots: Sequence[Sequence[Array]]) -> list[Array]:
    """Return the sign of the sum of signs, float32 arrays; 0 where the vote is tied."""
    return [np.sign(np.sum(parts, axis=0)) for parts in zip(*ballots, strict=True)]
