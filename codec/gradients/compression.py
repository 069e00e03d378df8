"""A gradient compressor and its rate: one choice, known to both ends."""

from dataclasses import dataclass
from typing import Any

from codec.errors import OptionError
from codec.gradients import COMPRESSORS, GradientCompressor, eden, make_compressor, top_k
from codec.options import COUNT, COUNT_OR_NONE, PROPER_SHARE, Options, Range, choice, option

UNCOMPRESSED = "none"
# Of a norm a tensor 63 levels take fewer bytes than 3 levels of a norm for every 512 coordinates,
# and leave a smaller error.
_OWN_BITS = {"eden": 2.0, "qsgd": 6.0}


@dataclass(frozen=True)
class Compression(Options):
    """Name and rate of a gradient compressor; false where nothing is compressed.

    Attributes
    ----------
    kind : str
        "none", or a key of `codec.gradients.COMPRESSORS`.
    bits : float
        Bits per coordinate before entropy coding: 1 to 4, or in (0, 1), for "eden"; 1 to 16 for
        "qsgd", which makes ``2**bits - 1`` levels above zero. 0: 2 for "eden", 6 for "qsgd". The
        others ignore it.
    density : float
        Share of the coordinates that "top-k" and "rand-k" send, in (0, 1].
    rank : int
        Of "powersgd", >= 1.
    bucket : int
        Coordinates of "qsgd" that share a norm; 0: a whole tensor.
    value_bits : int
        Bits of a value of "top-k", see `codec.gradients.TopK`.

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
    bits: float = option(
        0.0,
        "eden, qsgd: bits per coordinate, below 1 too for eden (0: 2 for eden, 6 for qsgd)",
        Range(0, 16),
        key="compressor-bits",
    )
    density: float = option(
        0.01, "top-k, rand-k: share of the coordinates", PROPER_SHARE, key="compressor-density"
    )
    rank: int = option(2, "powersgd: rank", COUNT, key="compressor-rank")
    bucket: int = option(
        0,
        "qsgd: coordinates that share a norm (0 = a whole tensor)",
        COUNT_OR_NONE,
        key="compressor-bucket",
    )
    value_bits: int = option(
        32,
        f"top-k: bits of a value ({top_k.LEGAL_BITS})",
        Range(min(top_k.VALUE_BITS), max(top_k.VALUE_BITS)),
        key="compressor-value-bits",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        bits = self._bits
        if self.kind == "eden" and not (bits < 1 or bits in eden.RELATIVE_ERROR):
            raise OptionError("bits", f"= {bits:g} must be {eden.LEGAL_BITS}, for eden")
        if self.kind == "qsgd" and (bits < 1 or bits != int(bits)):
            raise OptionError("bits", f"= {bits:g} must be a whole number from 1 to 16, for qsgd")
        if self.value_bits not in top_k.VALUE_BITS:
            raise OptionError("value_bits", f"= {self.value_bits} must be {top_k.LEGAL_BITS}")

    def __bool__(self) -> bool:
        """Whether anything is compressed at all."""
        return self.kind != UNCOMPRESSED

    @property
    def _bits(self) -> float:
        return self.bits or _OWN_BITS.get(self.kind, 0.0)

    def compressor(self) -> GradientCompressor | None:
        """Return the compressor, which is the decoder of every rate; None for "none"."""
        if not self:
            return None
        options: dict[str, dict[str, Any]] = {
            "eden": {"bits": self._bits},
            "qsgd": {"levels": 2 ** int(self._bits) - 1, "bucket": self.bucket},
            "top-k": {"density": self.density, "bits": self.value_bits},
            "rand-k": {"density": self.density},
            "powersgd": {"rank": self.rank},
        }
        return make_compressor(self.kind, **options.get(self.kind, {}))


@dataclass(frozen=True)
class Downlink(Options):
    """How the model's change travels to the clients; false where the whole model does.

    What a change leaves out is in the next one: the server keeps what clients have, and each
    change is that of theirs to its own. Hence only compressors whose error is smaller than what
    they code.

    Attributes
    ----------
    kind : str
        "none", "fp32", "fp16", "top-k" or "eden".
    bits : float
        Of "eden": 1, 2, 3 or 4.
    density, value_bits
        Of "top-k", see `Compression`.

    Raises
    ------
    OptionError
        On an illegal value; names what is legal.
    """

    kind: str = choice(
        "fedavg: compressor of the model's change on its way to the clients (none: the whole "
        "model travels)",
        *(UNCOMPRESSED, "fp32", "fp16", "top-k", "eden"),
        key="downlink",
    )
    bits: float = option(
        4.0, "downlink eden: bits per coordinate", Range(1, 4), key="downlink-bits"
    )
    density: float = option(
        0.01, "downlink top-k: share of the coordinates", PROPER_SHARE, key="downlink-density"
    )
    value_bits: int = option(
        32,
        f"downlink top-k: bits of a value ({top_k.LEGAL_BITS})",
        Range(min(top_k.VALUE_BITS), max(top_k.VALUE_BITS)),
        key="downlink-value-bits",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._compression()

    def __bool__(self) -> bool:
        """Whether changes travel."""
        return self.kind != UNCOMPRESSED

    def _compression(self) -> Compression:
        bits = self.bits if self.kind == "eden" else 0.0
        return Compression(self.kind, bits, self.density, value_bits=self.value_bits)

    def compressor(self) -> GradientCompressor | None:
        """Return the compressor of the changes; None for "none"."""
        return self._compression().compressor()
