"""A gradient compressor and its rate: one choice, known to both ends."""

from dataclasses import dataclass
from typing import Any, ClassVar

from codec.errors import CodecError
from codec.gradients import COMPRESSORS, GradientCompressor, make_compressor
from codec.gradients.eden import RELATIVE_ERROR

UNCOMPRESSED = "none"
COMPRESSIONS = (UNCOMPRESSED, *COMPRESSORS)
_BITS = {"eden": max(RELATIVE_ERROR), "qsgd": 16}


@dataclass(frozen=True)
class Compression:
    """Name and rate of a gradient compressor.

    Attributes
    ----------
    kind : str
        "none", or a key of `codec.gradients.COMPRESSORS`.
    bits : int
        Bits per coordinate before entropy coding: 1 to 4 for "eden"; 1 to 16 for "qsgd", which
        makes ``2**bits - 1`` levels above zero. The others ignore it.
    density : float
        Share of the coordinates that "top-k" and "rand-k" send, in (0, 1].
    rank : int
        Of "powersgd", >= 1.

    Raises
    ------
    CodecError
        On an illegal value; names what is legal.
    """

    key: ClassVar[str] = "compressor"  # name of the kind in instructions and messages
    kinds: ClassVar[tuple[str, ...]] = COMPRESSIONS

    kind: str = UNCOMPRESSED
    bits: int = 2
    density: float = 0.01
    rank: int = 2

    def __post_init__(self) -> None:
        if self.kind not in self.kinds:
            raise CodecError(f"{self.key} = {self.kind!r} is not one of {', '.join(self.kinds)}")
        most = _BITS.get(self.kind, 16)
        if not 1 <= self.bits <= most:
            raise CodecError(f"compressor-bits = {self.bits} outside [1, {most}] of {self.kind}")
        if not 0 < self.density <= 1:
            raise CodecError(f"compressor-density = {self.density} outside (0, 1]")
        if self.rank < 1:
            raise CodecError(f"compressor-rank = {self.rank} must be >= 1")

    def __bool__(self) -> bool:
        """Whether anything is compressed at all."""
        return self.kind != UNCOMPRESSED

    def entries(self) -> dict[str, str | int | float]:
        """Return kind and rate as they stand in an instruction."""
        return {
            self.key: self.kind,
            "compressor-bits": self.bits,
            "compressor-density": self.density,
            "compressor-rank": self.rank,
        }

    def compressor(self) -> GradientCompressor | None:
        """Return the compressor, which is the decoder of every rate; None for "none"."""
        if not self:
            return None
        options: dict[str, dict[str, Any]] = {
            "eden": {"bits": self.bits},
            "qsgd": {"levels": 2**self.bits - 1},
            "top-k": {"density": self.density},
            "rand-k": {"density": self.density},
            "powersgd": {"rank": self.rank},
        }
        return make_compressor(self.kind, **options.get(self.kind, {}))
