"""How the residual of a gradient is compressed: one choice, known to both ends."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from codec.compressors import COMPRESSORS, EDEN, GradientCompressor, make_compressor
from codec.compressors.eden import RELATIVE_ERROR
from codec.compressors.tensors import Array
from codec.errors import CodecError

NO_REFINEMENT = "none"
AUTO = "auto"
REFINEMENTS = (NO_REFINEMENT, AUTO, *COMPRESSORS)
_BITS = {"eden": max(RELATIVE_ERROR), "qsgd": 16}


@dataclass(frozen=True)
class Refinement:
    """Compressor of the residual, and its rate.

    Attributes
    ----------
    kind : str
        "none", a key of `codec.compressors.COMPRESSORS`, or "auto": EDEN with the fewest bits
        that the tolerance allows, which may be none at all.
    bits : int
        Bits per coordinate before entropy coding: 1 to 4 for "eden"; 1 to 16 for "qsgd", which
        makes ``2**bits - 1`` levels above zero. The others ignore it.
    density : float
        Share of the coordinates that "top-k" and "rand-k" send, in (0, 1].
    rank : int
        Of "powersgd", >= 1.
    tolerance : float
        "auto": error that may stay in the gradient, relative to its norm, > 0.

    Raises
    ------
    CodecError
        On an illegal value; names what is legal.
    """

    kind: str = NO_REFINEMENT
    bits: int = 2
    density: float = 0.01
    rank: int = 2
    tolerance: float = 0.3

    def __post_init__(self) -> None:
        if self.kind not in REFINEMENTS:
            legal = ", ".join(REFINEMENTS)
            raise CodecError(f"refinement = {self.kind!r} is not one of {legal}")
        most = _BITS.get(self.kind, 16)
        if not 1 <= self.bits <= most:
            raise CodecError(f"compressor-bits = {self.bits} outside [1, {most}] of {self.kind}")
        if not 0 < self.density <= 1:
            raise CodecError(f"compressor-density = {self.density} outside (0, 1]")
        if self.rank < 1:
            raise CodecError(f"compressor-rank = {self.rank} must be >= 1")
        if not (self.tolerance > 0 and math.isfinite(self.tolerance)):
            raise CodecError(f"refinement-tolerance = {self.tolerance} must be > 0 and finite")

    def __bool__(self) -> bool:
        """Whether a residual is computed at all."""
        return self.kind != NO_REFINEMENT

    def compressor(self) -> GradientCompressor | None:
        """Return the compressor, which is the decoder of every rate; None for "none"."""
        if not self:
            return None
        if self.kind == AUTO:
            return EDEN()
        options: dict[str, dict[str, Any]] = {
            "eden": {"bits": self.bits},
            "qsgd": {"levels": 2**self.bits - 1},
            "top-k": {"density": self.density},
            "rand-k": {"density": self.density},
            "powersgd": {"rank": self.rank},
        }
        return make_compressor(self.kind, **options.get(self.kind, {}))

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
