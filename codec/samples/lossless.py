"""Samples bit for bit: their bytes as the columns of a table."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from codec.coding.columns import code_columns
from codec.coding.entropy import line_entropy
from codec.coding.range_coder import BitDecoder, BitEncoder, Ints
from codec.errors import CodecError, PayloadError
from codec.samples.sample_codec import Array, Key

if TYPE_CHECKING:
    from codec.samples.options import CodecOptions
    from codec.samples.spec import SampleSpec


_LARGEST_INTEGER = 1 << 24  # decoded samples are float32


class Lossless:
    """Every byte of a value is a column; pixels are differences from their neighbours."""

    name = "lossless"
    identifier = 3
    uses = ()
    lossless = True

    def is_unbiased(self, options: "CodecOptions") -> bool:
        """Return True: nothing is lost."""
        return True

    def needs_key(self, options: "CodecOptions") -> bool:
        """Return False: nothing is random."""
        return False

    def check(self, spec: "SampleSpec") -> None:
        """Accept all samples; raise `CodecError` for integers that float32 does not hold."""
        if spec.dtype == "int32" and max(abs(spec.low), abs(spec.high)) > _LARGEST_INTEGER:
            raise CodecError(
                f"integers lie in [{spec.low:.0f}, {spec.high:.0f}]; codec = 'lossless' takes "
                f"those up to +-{_LARGEST_INTEGER}. Give larger ones as floats"
            )

    def decoded_values(self, spec: "SampleSpec") -> int:
        """Bytes of a sample."""
        return math.prod(spec.shape) * np.dtype(spec.dtype).itemsize

    def encode(
        self,
        samples: NDArray[Any],
        spec: "SampleSpec",
        key: Key,
        like: NDArray[Any] | None = None,
    ) -> bytes:
        """See `codec.samples.sample_codec.SampleCodec`."""
        coder, planes = BitEncoder(), _byte_planes(samples, spec)
        code_columns(coder, 8, len(planes), planes.shape[1], planes)
        return coder.finish()

    def decode(
        self, data: bytes, count: int, spec: "SampleSpec", key: Key
    ) -> tuple[Array, float | None]:
        """See `codec.samples.sample_codec.SampleCodec`."""
        planes = code_columns(BitDecoder(data), 8, count, self.decoded_values(spec), None)
        samples = _from_byte_planes(planes, spec)
        if not ((samples >= spec.low) & (samples <= spec.high)).all():  # False for NaN
            raise PayloadError(f"lossless samples outside [{spec.low}, {spec.high}]")
        return samples, line_entropy(planes.T)

    def reconstruct(
        self,
        samples: NDArray[Any],
        spec: "SampleSpec",
        key: Key,
        like: NDArray[Any] | None = None,
    ) -> Array:
        """See `codec.samples.sample_codec.SampleCodec`."""
        return samples.astype(np.float32)


def _byte_planes(samples: NDArray[Any], spec: "SampleSpec") -> Ints:
    """Bytes of samples, int64 (N, bytes); of uint8 grids, differences modulo 256."""
    if spec.dtype == "uint8":
        for axis in range(2, samples.ndim):
            samples = np.diff(samples, axis=axis, prepend=np.uint8(0))
    little = np.ascontiguousarray(samples, np.dtype(spec.dtype).newbyteorder("<"))
    return little.reshape(len(samples), -1).view(np.uint8).astype(np.int64)


def _from_byte_planes(planes: Ints, spec: "SampleSpec") -> Array:
    little = planes.astype(np.uint8).view(np.dtype(spec.dtype).newbyteorder("<"))
    samples = little.reshape(-1, *spec.shape)
    if spec.dtype == "uint8":
        for axis in range(2, samples.ndim):
            samples = np.cumsum(samples, axis=axis, dtype=np.uint8)
    return samples.astype(np.float32)
