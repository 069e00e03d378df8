"""A gradient compressor and its rate: one choice, known to both ends."""

from dataclasses import dataclass
from typing import Any

from codec.errors import OptionError
from codec.gradients import COMPRESSORS, GradientCompressor, make_compressor
from codec.gradients.eden import RELATIVE_ERROR
from codec.options import COUNT, PROPER_SHARE, Options, Range, choice, option

UNCOMPRESSED = "none"
_MOST_BITS = {"eden": max(RELATIVE_ERROR)}


@dataclass(frozen=True)
class Compression(Options):
    """Name and rate of a gradient compressor; false where nothing is compressed.

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
    OptionError
        On an illegal value; names what is legal.
    """

    kind: str = choice(
        "gradient: compressor of the gradient (none: fp32); fedavg: of the model's change",
        *(UNCOMPRESSED, *COMPRESSORS),
        key="compressor",
    )
    bits: int = option(2, "eden, qsgd: bits per coordinate", Range(1, 16), key="compressor-bits")
    density: float = option(
        0.01, "top-k, rand-k: share of the coordinates", PROPER_SHARE, key="compressor-density"
    )
    rank: int = option(2, "powersgd: rank", COUNT, key="compressor-rank")

    def __post_init__(self) -> None:
        super().__post_init__()
        most = _MOST_BITS.get(self.kind)
        if most is not None and self.bits > most:
            raise OptionError("bits", f"= {self.bits} must be in [1, {most}] for {self.kind}")

    def __bool__(self) -> bool:
        """Whether anything is compressed at all."""
        return self.kind != UNCOMPRESSED

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
