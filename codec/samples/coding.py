"""Samples to payload and back: the whole path in the order that the data take it.

::

    sample -> transform -> quantizer -> entropy coder -> payload
    payload -> entropy decoder -> dequantizer -> inverse transform -> sample
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.coding import cursor as wire
from codec.coding.columns import code_columns
from codec.coding.range_coder import BitCoder, BitDecoder, BitEncoder, Ints
from codec.errors import CodecError, PayloadError
from codec.samples.block_dct.coefficients import (
    CoefficientModel,
    code_coefficients,
    layout,
    line_entropy,
)
from codec.samples.block_dct.prediction import Prediction, block_means, predictable
from codec.samples.block_dct.steps import coefficient_steps
from codec.samples.block_dct.transform import forward, inverse
from codec.samples.payload import SamplePayload
from codec.samples.quantizer import UNBIASED, Key, centroid_offsets, dequantize, quantize
from codec.samples.spec import SampleSpec
from codec.samples.targets import (
    check_targets,
    decode_targets,
    decode_weights,
    encode_targets,
    encode_weights,
)

Array = NDArray[np.float32]

MAX_MAGNITUDE = 1 << 22
_OFFSET_UNIT = 512  # reconstruction offsets travel in 1/512 of a step


@dataclass(frozen=True)
class DecodedSamples:
    """What a payload decodes to.

    Attributes
    ----------
    samples : float32 (N, *shape)
        Reconstructed samples x_hat, in units of the source (0..255 for images in uint8).
    targets : int64 (N,) or float32 (N, target_size)
        Class labels, or target vectors.
    weights : float32 (N,)
        Importance weights 1/p; ones where nothing was left out by chance.
    entropy_bits : dict of str to float
        Empirical zero-order entropy of each coded section, in bits: of every coefficient or
        column by itself, side information not counted.
    """

    samples: Array
    targets: NDArray[Any]
    weights: Array
    entropy_bits: dict[str, float]


def encode_samples(
    samples: NDArray[Any],
    targets: NDArray[Any],
    spec: SampleSpec,
    *,
    key: Key = (0, 0, 0),
    inclusion: NDArray[Any] | None = None,
) -> SamplePayload:
    """Quantize and code a set of samples.

    Parameters
    ----------
    samples : (N, *spec.shape), of ``spec.dtype``
        Samples in [spec.low, spec.high].
    targets : integer (N,) or float32 (N, spec.target_size)
        Class labels in [0, spec.classes), or target vectors.
    spec : SampleSpec
        What the samples are, and how to code them.
    key : (int, int, int)
        Seed, client and payload, each >= 0: key of the random numbers of the quantizer.
    inclusion : integer (N,), optional
        Numerators k, 1..256, of the probability k / 256 with which each sample was kept.

    Returns
    -------
    SamplePayload
        The coded samples.

    Raises
    ------
    CodecError
        If shapes, types or values do not fit `spec`.
    """
    samples, targets = np.asarray(samples), np.asarray(targets)
    _check_samples(samples, spec)
    check_targets(targets, len(samples), spec)
    if not len(samples):
        return SamplePayload(spec, 0, {}, key)
    sections = {"targets": encode_targets(targets, spec)}
    if inclusion is not None:
        sections["weights"] = encode_weights(np.asarray(inclusion), len(samples))
    sections |= _encode_values(samples, spec, key)
    return SamplePayload(spec, len(samples), sections, key)


def decode_samples(payload: SamplePayload) -> DecodedSamples:
    """Decode a payload.

    Raises
    ------
    PayloadError
        If a section does not decode to what the spec declares.
    """
    spec, count = payload.spec, payload.count
    if not count:
        targets = np.zeros(0, np.int64) if spec.classes else np.zeros((0, spec.target_size), "f4")
        return DecodedSamples(np.zeros((0, *spec.shape), "f4"), targets, np.zeros(0, "f4"), {})
    targets, target_bits = decode_targets(payload)
    weights, weight_bits = decode_weights(payload)
    values, value_bits = _decode_values(payload)
    if not np.isfinite(values).all():
        raise PayloadError("samples decode to numbers that are not finite")
    bits = {"targets": target_bits, "weights": weight_bits, "coefficients": value_bits}
    return DecodedSamples(values, targets, weights, bits)


# Values


def _encode_values(samples: NDArray[Any], spec: SampleSpec, key: Key) -> dict[str, bytes]:
    coder = BitEncoder()
    if spec.codec.quantizer == "identity":
        planes = _byte_planes(samples, spec)
        code_columns(coder, 8, len(planes), planes.shape[1], planes)
        return {"coefficients": coder.finish()}
    scaled = _scale(samples, spec)
    tables = _quantize(scaled, spec, key)
    _check_magnitude(max(int(np.abs(table).max()) for table in tables))
    if spec.transform.kind == "identity":
        lowest = int(tables[0].min())
        width = int(tables[0].max() - lowest).bit_length()
        columns = tables[0].T - lowest
        code_columns(coder, width, len(samples), columns.shape[1], columns)
        return {"offsets": _pack_lowest(lowest, width), "coefficients": coder.finish()}
    _code_levels(coder, spec, len(samples), tables)
    sections = {"coefficients": coder.finish()}
    if _has_offsets(spec):
        sections["offsets"] = _pack_offsets(centroid_offsets(_flat(scaled), _flat(tables)))
    return sections


def _code_levels(
    coder: BitCoder, spec: SampleSpec, count: int, tables: list[Ints] | None
) -> list[Ints]:
    """Code the tables of all levels, coarsest first; None when decoding."""
    levels, model = spec.transform.levels, CoefficientModel.start()
    factors = [steps[:, 0] / steps[0, 0] for steps in _steps(spec)]
    coded: list[Ints] = []
    means: Ints | None = None  # of the level's blocks
    for number in reversed(range(len(levels))):
        level = levels[number]
        plan = layout(level.channels, level.block_shape)
        table = None if tables is None else tables[number]
        around = None
        if means is not None and predictable(level):
            around = Prediction(level, means, factors[number])
        values = code_coefficients(coder, model, plan, count * level.blocks, table, around)
        coded.insert(0, values)
        if number:
            means = block_means(level, values, means)
    return coded


def quantize_samples(samples: NDArray[Any], spec: SampleSpec, key: Key) -> list[Ints]:
    """Return the integers that stand for samples (N, *spec.shape), before entropy coding.

    Returns
    -------
    list of int64 (coefficients, N * blocks)
        One table for each level of the transform.
    """
    return _quantize(_scale(samples, spec), spec, key)


def reconstruct_samples(samples: NDArray[Any], spec: SampleSpec, key: Key) -> Array:
    """Return what a payload of samples (N, *spec.shape) decodes to, without making one.

    An encoder that needs to know what the server will see is spared the entropy decoder.
    """
    if spec.codec.quantizer == "identity" or not len(samples):
        return samples.astype(np.float32)
    scaled = _scale(samples, spec)
    tables = _quantize(scaled, spec, key)
    offsets = (0.0, 0.0)
    if _has_offsets(spec):
        packed = _pack_offsets(centroid_offsets(_flat(scaled), _flat(tables)))
        offsets = _unpack_offsets(wire.Reader(packed))
    return _dequantize(tables, spec, offsets, key)


def _quantize(scaled: list[Array], spec: SampleSpec, key: Key) -> list[Ints]:
    kind, dead_zone = spec.codec.quantizer, _dead_zone(spec)
    tables = [
        quantize(table, kind, dead_zone=dead_zone, key=(*key, number))
        for number, table in enumerate(scaled)
    ]
    for level, table in zip(spec.transform.levels[:-1], tables, strict=False):
        table[level.means] = 0  # the next level holds them, and dither is not wanted here
    return tables


def _flat(tables: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate([table.ravel() for table in tables])


def _decode_values(payload: SamplePayload) -> tuple[Array, float]:
    spec, count = payload.spec, payload.count
    coder = BitDecoder(payload.sections.get("coefficients", b""))
    if spec.codec.quantizer == "identity":
        size = int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize
        planes = code_columns(coder, 8, count, size, None)
        samples = _from_byte_planes(planes, spec)
        if not ((samples >= spec.low) & (samples <= spec.high)).all():  # False for NaN
            raise PayloadError(f"lossless samples outside [{spec.low}, {spec.high}]")
        return samples, line_entropy(planes.T)
    transform = spec.transform
    section = wire.Reader(payload.sections.get("offsets", b""))
    offsets = (0.0, 0.0)
    if transform.kind == "identity":
        lowest, width = _unpack_lowest(section)
        tables = [code_columns(coder, width, count, transform.coefficients, None).T + lowest]
    else:
        if _has_offsets(spec):
            offsets = _unpack_offsets(section)
        tables = _code_levels(coder, spec, count, None)
    values = _dequantize(tables, spec, offsets, payload.key)
    return values, sum(line_entropy(table) for table in tables)


def _dequantize(
    tables: list[Ints], spec: SampleSpec, offsets: tuple[float, float], key: Key
) -> Array:
    scaled = [
        dequantize(table, spec.codec.quantizer, offsets=offsets, key=(*key, number))
        for number, table in enumerate(tables)
    ]
    return _unscale(scaled, spec)


def _steps(spec: SampleSpec) -> list[Array]:
    codec = spec.codec
    step = codec.step * (spec.high - spec.low)
    return [
        coefficient_steps(level, step, codec.tilt, codec.chroma) for level in spec.transform.levels
    ]


def _origin(spec: SampleSpec) -> np.float32:
    """Return the value that is coded as zero: mid-range for a transform, the bottom for none."""
    middle = spec.low if spec.transform.kind == "identity" else (spec.low + spec.high) / 2
    return np.float32(middle)


def _dead_zone(spec: SampleSpec) -> float:
    return 0.0 if spec.transform.kind == "identity" else spec.codec.dead_zone


def _scale(samples: NDArray[Any], spec: SampleSpec) -> list[Array]:
    tables = forward(samples.astype(np.float32) - _origin(spec), spec.transform)
    return [table / steps for table, steps in zip(tables, _steps(spec), strict=True)]


def _unscale(scaled: list[Array], spec: SampleSpec) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):  # `decode_samples` refuses the result
        tables = [table * steps for table, steps in zip(scaled, _steps(spec), strict=True)]
        values = inverse(tables, spec.transform) + _origin(spec)
    if spec.codec.quantizer in UNBIASED:
        return values  # clipping would bias what the quantizer keeps unbiased
    clipped: Array = np.clip(values, spec.low, spec.high)
    return clipped


def _byte_planes(samples: NDArray[Any], spec: SampleSpec) -> Ints:
    """Bytes of lossless samples, int64 (N, bytes); of uint8 grids, differences modulo 256."""
    if spec.dtype == "uint8":
        for axis in range(2, samples.ndim):
            samples = np.diff(samples, axis=axis, prepend=np.uint8(0))
    little = np.ascontiguousarray(samples, np.dtype(spec.dtype).newbyteorder("<"))
    return little.reshape(len(samples), -1).view(np.uint8).astype(np.int64)


def _from_byte_planes(planes: Ints, spec: SampleSpec) -> Array:
    little = planes.astype(np.uint8).view(np.dtype(spec.dtype).newbyteorder("<"))
    samples = little.reshape(-1, *spec.shape)
    if spec.dtype == "uint8":
        for axis in range(2, samples.ndim):
            samples = np.cumsum(samples, axis=axis, dtype=np.uint8)
    return samples.astype(np.float32)


def _pack_lowest(lowest: int, width: int) -> bytes:
    return bytes([width]) + wire.varint(2 * lowest if lowest >= 0 else -2 * lowest - 1)


def _unpack_lowest(section: wire.Reader) -> tuple[int, int]:
    width, zigzag = section.byte("width"), section.varint("lowest symbol")
    section.finish()
    if width > MAX_MAGNITUDE.bit_length() + 1 or zigzag > 2 * MAX_MAGNITUDE:
        raise PayloadError(
            f"symbols of {width} bits above {zigzag} (zigzag); "
            f"at most {MAX_MAGNITUDE.bit_length() + 1} bits above {2 * MAX_MAGNITUDE}"
        )
    return (zigzag >> 1) if zigzag % 2 == 0 else -((zigzag + 1) >> 1), width


def _has_offsets(spec: SampleSpec) -> bool:
    cosine = spec.transform.kind != "identity"
    centroid = spec.codec.reconstruction == "centroid"
    return cosine and centroid and spec.codec.quantizer == "nearest"


def _pack_offsets(offsets: tuple[float, float]) -> bytes:
    return bytes(int(np.clip(round(offset * _OFFSET_UNIT), 0, 255)) for offset in offsets)


def _unpack_offsets(section: wire.Reader) -> tuple[float, float]:
    ones, more = section.byte("offset"), section.byte("offset")
    section.finish()
    return ones / _OFFSET_UNIT, more / _OFFSET_UNIT


# Checks


def _check_samples(samples: NDArray[Any], spec: SampleSpec) -> None:
    if samples.shape[1:] != spec.shape or samples.dtype != spec.dtype:
        raise CodecError(
            f"samples are {samples.dtype} {samples.shape}; the spec says {spec.dtype} "
            f"(N, {', '.join(map(str, spec.shape))})"
        )
    if not samples.size:
        return
    low, high = samples.min(), samples.max()
    if not (low >= spec.low and high <= spec.high):  # also catches NaN
        raise CodecError(
            f"samples lie in [{low}, {high}]; legal range: [{spec.low}, {spec.high}], no NaN"
        )


def _check_magnitude(largest: int) -> None:
    if largest >= MAX_MAGNITUDE:
        raise CodecError(
            f"a quantized coefficient is {largest} steps; legal: below {MAX_MAGNITUDE}. "
            "Use a larger step"
        )
