"""How the residual of a gradient is compressed: one choice, known to both ends."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from codec.gradients import COMPRESSORS, EDEN, GradientCompressor
from codec.gradients.compression import UNCOMPRESSED, Compression
from codec.gradients.eden import RELATIVE_ERROR
from codec.gradients.tensors import Array
from codec.options import POSITIVE, choice, option

AUTO = "auto"


@dataclass(frozen=True)
class Refinement(Compression):
    """Compressor of the residual, and its rate; false where no residual is computed at all.

    Attributes
    ----------
    kind : str
        As for `Compression`, or "auto": EDEN with the fewest bits that the tolerance allows,
        which may be none at all.
    bits, density, rank
        See `Compression`.
    tolerance : float
        "auto": error that may stay in the gradient, relative to its norm, > 0.

    Raises
    ------
    OptionError
        On an illegal value; names what is legal.
    """

    kind: str = choice(
        "streaming: compressor of the gradient residual (auto: eden at the rate it needs)",
        *(UNCOMPRESSED, AUTO, *COMPRESSORS),
        key="refinement",
    )
    tolerance: float = option(
        0.3,
        "auto: error that may stay in the gradient, as a share of its norm",
        POSITIVE,
        key="refinement-tolerance",
    )

    def compressor(self) -> GradientCompressor | None:
        """Return the compressor, which is the decoder of every rate; None for "none"."""
        return EDEN() if self.kind == AUTO else super().compressor()

    def choose(
        self, residual: Sequence[Array], gradient: Sequence[Array]
    ) -> GradientCompressor | None:
        """Return the compressor for this residual; None when it is not worth sending.

        With "auto", what EDEN leaves of the residual r is ``e(bits) |r|^2``; the fewest bits are
        taken that bring it to ``tolerance^2 |g|^2``, g being the gradient of the minibatch, and
        the most bits there are when none do. What stays unsent is the residual's own bias: with
        an unbiased codec, none.

        Parameters
        ----------
        residual, gradient : sequence of float32 arrays
            Of equal shapes.
        """
        if self.kind != AUTO:
            return self.compressor()
        missing, allowed = _squared_norm(residual), self.tolerance**2 * _squared_norm(gradient)
        if missing <= allowed:
            return None
        enough = [bits for bits, error in RELATIVE_ERROR.items() if error * missing <= allowed]
        return EDEN(min(enough, default=max(RELATIVE_ERROR)))


def _squared_norm(parts: Sequence[Array]) -> float:
    return sum(float(np.square(part, dtype=np.float64).sum()) for part in parts)
