"""QSGD: stochastic levels between zero and the norm of a bucket.

Alistarh, Grubic, Li, Tomioka, Vojnovic: QSGD: Communication-Efficient SGD via Gradient
Quantization and Encoding, NeurIPS 2017, section 3.1 and, for buckets, section 4.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from codec.coding.floats import decode_bits, decode_words, encode_bits, encode_words
from codec.coding.runs import runs
from codec.coding.symbols import SymbolDecoder, SymbolEncoder
from codec.errors import CodecError, PayloadError
from codec.gradients.frame import Frame, read_frame
from codec.gradients.tensors import (
    MAX_COORDINATES,
    Array,
    Memory,
    Shapes,
    flatten,
    sizes,
    unflatten,
)

_MAX_LEVELS = 2**16
_INFINITY = 0x7F80  # upper half of the float32 word


@dataclass(frozen=True)
class QSGD:
    """Unbiased quantization of each coordinate to ``sign * norm * level / levels``.

    A bucket is `bucket` consecutive coordinates of one tensor (fewer in its last one), or a whole
    tensor: more levels with fewer norms often take fewer bytes at the same error. In
    place of the paper's Elias codes, levels are coded adaptively near their entropy and norms
    keep eight significant bits, rounded up: any norm that is not below the bucket's own leaves
    the estimate unbiased. The variance is at most
    ``min(d / s**2, sqrt(d) / s) * norm**2`` (lemma 3.1, d = bucket, s = levels), up to a factor
    of ``1 + 2**-7`` from that rounding.

    Parameters
    ----------
    levels : int
        Levels above zero, in [1, 65536].
    bucket : int
        Coordinates that share a norm, >= 1; 0: all of a tensor.
    """

    name: ClassVar[str] = "qsgd"
    identifier: ClassVar[int] = 1

    levels: int = 16
    bucket: int = 512

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= _MAX_LEVELS:
            raise CodecError(f"levels is {self.levels}, must be in [1, {_MAX_LEVELS}]")
        if self.bucket < 0:
            raise CodecError(f"bucket is {self.bucket}, must be >= 0")

    def compress(
        self, gradient: Sequence[Array], memory: Memory | None, generator: np.random.Generator
    ) -> tuple[bytes, None]:
        """See `codec.gradients.GradientCompressor`."""
        vector, shapes = flatten(gradient)
        lengths = _bucket_lengths(shapes, self.bucket)
        words = _norm_words(vector, lengths)
        levels = _random_levels(vector, np.repeat(_norms(words), lengths), self.levels, generator)
        sections = (
            encode_words(words),
            _encode_levels(levels, self.levels, _alike(shapes, self.bucket)),
            encode_bits(vector[levels > 0] < 0),
        )
        parameters = (self.levels, self.bucket)
        return Frame(self.identifier, shapes, parameters, sections).to_bytes(), None

    def decompress(
        self,
        data: bytes,
        shapes: Sequence[tuple[int, ...]] | None = None,
        limit: int = MAX_COORDINATES,
    ) -> list[Array]:
        """See `codec.gradients.GradientCompressor`."""
        frame = read_frame(
            data, self.identifier, parameters=2, sections=3, shapes=shapes, limit=limit
        )
        finest, bucket = frame.parameters
        if not 1 <= finest <= _MAX_LEVELS:
            raise PayloadError(f"levels {finest} of 1..{_MAX_LEVELS}")
        lengths = _bucket_lengths(frame.shapes, bucket)
        norms = _norms(decode_words(frame.sections[0], len(lengths), 2))
        levels = decode_levels(frame, finest, bucket)
        sent = np.flatnonzero(levels)
        signed = levels[sent].astype(np.float64)
        signed[decode_bits(frame.sections[2], len(sent))] *= -1
        values = np.zeros(frame.coordinates, np.float32)
        values[sent] = _values(signed, np.repeat(norms, lengths)[sent], finest)
        return unflatten(values, frame.shapes)


def _bucket_lengths(shapes: Shapes, bucket: int) -> NDArray[np.int64]:
    """Return the coordinates of each bucket; none spans two tensors."""
    lengths = [np.empty(0, np.int64)]
    for size in sizes(shapes):
        length = bucket or max(size, 1)
        whole, rest = divmod(size, length)
        lengths.append(np.array([length] * min(whole, 1), np.int64).repeat(whole))
        lengths.append(np.array([rest] * min(rest, 1), np.int64))
    return np.concatenate(lengths)


def _alike(shapes: Shapes, bucket: int) -> list[list[slice]]:
    """Return the places of coordinates whose levels are coded by one table.

    With a norm a tensor, levels are the smaller the larger the tensor is: one table for each
    doubling of the size saves some 10 %. Else all are in one.
    """
    ends = np.cumsum(sizes(shapes), dtype=np.int64).tolist()
    if bucket:
        return [[slice(0, ends[-1] if ends else 0)]]
    classes: dict[int, list[slice]] = {}
    for size, end in zip(sizes(shapes), ends, strict=True):
        classes.setdefault(size.bit_length(), []).append(slice(end - size, end))
    return [classes[doublings] for doublings in sorted(classes)]


def _encode_levels(levels: NDArray[np.int64], finest: int, alike: list[list[slice]]) -> bytes:
    encoder = SymbolEncoder()
    for places in alike:
        encoder.integers(np.concatenate([levels[place] for place in places]), finest)
    return encoder.to_bytes()


def decode_levels(frame: Frame, finest: int, bucket: int) -> NDArray[np.int32]:
    """Return the levels of all coordinates in their order; `PayloadError` if malformed."""
    decoder, levels = SymbolDecoder(frame.sections[1]), np.empty(frame.coordinates, np.int32)
    for places in _alike(frame.shapes, bucket):
        lengths = [place.stop - place.start for place in places]
        parts = np.split(decoder.integers(sum(lengths), finest), np.cumsum(lengths)[:-1])
        for place, part in zip(places, parts, strict=True):
            levels[place] = part
    decoder.finish()
    return levels


def _norm_words(vector: Array, lengths: NDArray[np.int64]) -> NDArray[np.uint16]:
    """Return the L2 norm of each bucket as the upper half of a float32, rounded up."""
    if not len(lengths):
        return np.empty(0, np.uint16)
    starts = np.cumsum(lengths) - lengths
    norms = np.sqrt(np.add.reduceat(np.square(vector, dtype=np.float64), starts))
    with np.errstate(over="ignore"):
        rounded = norms.astype(np.float32)
    words = rounded.view(np.uint32) + (rounded < norms)
    words = (words + np.uint32(0xFFFF)) >> np.uint32(16)
    if words.max() >= _INFINITY:
        raise CodecError(f"bucket of norm {norms.max():.3g}, must be at most 3.38e38")
    return words.astype(np.uint16)


def _norms(words: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (words.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _random_levels(
    vector: Array, norms: NDArray[np.float32], finest: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Round ``finest * |v| / norm`` up with the probability of its fraction, down otherwise."""
    levels = np.empty(len(vector), np.int64)
    for run in runs(len(vector)):
        norm = norms[run].astype(np.float64)
        exact = np.abs(vector[run]) * float(finest) / np.where(norm > 0, norm, 1.0)
        below = np.floor(exact)
        levels[run] = below + (generator.random(len(exact)) < exact - below)
    return levels


def _values(
    signed: NDArray[np.float64], norms: NDArray[np.float32], finest: int
) -> NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):
        return (signed * norms / finest).astype(np.float32)
