"""Targets and importance weights of samples to bytes and back."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.coding.columns import code_columns
from codec.coding.entropy import line_entropy
from codec.coding.range_coder import BitDecoder, BitEncoder, Ints
from codec.errors import CodecError, PayloadError
from codec.samples.payload import TARGETS, WEIGHTS, SamplePayload
from codec.samples.spec import SampleSpec

INCLUSION_UNIT = 256  # inclusion probabilities are k/256: both ends know them exactly


def encode_targets(targets: NDArray[Any], spec: SampleSpec) -> bytes:
    """Return labels, or target vectors, as bytes."""
    coder = BitEncoder()
    table, width = _target_table(targets, spec)
    if not spec.classes:
        code_columns(coder, width, len(table), table.shape[1], table)
        return coder.finish()
    # Labels in ascending order are coded by their differences, which are nearly all zero.
    ascending = bool((np.diff(table[:, 0]) >= 0).all())
    table = np.diff(table, axis=0, prepend=0) if ascending else table
    code_columns(coder, width, len(table), table.shape[1], table)
    return bytes([ascending]) + coder.finish()


def _target_table(targets: NDArray[Any], spec: SampleSpec) -> tuple[Ints, int]:
    if spec.classes:
        return targets.astype(np.int64).reshape(-1, 1), (spec.classes - 1).bit_length()
    little = np.ascontiguousarray(targets, "<f4")
    return little.view(np.uint8).reshape(len(targets), -1).astype(np.int64), 8


def decode_targets(payload: SamplePayload) -> tuple[NDArray[Any], float]:
    """Return targets (N,) or (N, target_size), and their empirical entropy in bits.

    Raises
    ------
    PayloadError
        If the section holds none.
    """
    spec = payload.spec
    section = payload.sections.get(TARGETS, b"")
    if spec.classes:
        width, ascending = (spec.classes - 1).bit_length(), section[:1] == b"\x01"
        table = code_columns(BitDecoder(section[1:]), width, payload.count, 1, None)
        labels = np.cumsum(table, axis=0) if ascending else table
        if labels.max() >= spec.classes:
            raise PayloadError(f"label {labels.max()}; legal range: [0, {spec.classes - 1}]")
        return labels[:, 0], line_entropy(table.T)
    coder = BitDecoder(section)
    planes = code_columns(coder, 8, payload.count, 4 * spec.target_size, None)
    floats = planes.astype(np.uint8).view("<f4").astype(np.float32)
    if not np.isfinite(floats).all():
        raise PayloadError("targets decode to numbers that are not finite")
    return floats, line_entropy(planes.T)


def encode_weights(inclusion: NDArray[Any], count: int) -> bytes:
    """Return inclusion numerators k, 1..`INCLUSION_UNIT`, integer (count,), as bytes.

    Raises
    ------
    CodecError
        If a numerator is not legal.
    """
    legal = (inclusion >= 1) & (inclusion <= INCLUSION_UNIT)
    if inclusion.shape != (count,) or inclusion.dtype.kind not in "iu" or not legal.all():
        raise CodecError(
            f"inclusion is {inclusion.dtype} {inclusion.shape}, {np.unique(inclusion)[:5]}...; "
            f"it must be integers ({count},) in [1, {INCLUSION_UNIT}]"
        )
    coder = BitEncoder()
    left_out = INCLUSION_UNIT - inclusion.astype(np.int64)
    code_columns(coder, 8, count, 1, left_out.reshape(-1, 1))
    return coder.finish()


def decode_weights(payload: SamplePayload) -> tuple[NDArray[np.float32], float]:
    """Return importance weights, float32 (N,), and the section's empirical entropy in bits."""
    # No section at all decodes to zeros: nothing left out, every weight one.
    coder = BitDecoder(payload.sections.get(WEIGHTS, b""))
    left_out = code_columns(coder, 8, payload.count, 1, None)
    inclusion = (INCLUSION_UNIT - left_out[:, 0]).astype(np.float32)
    return np.float32(INCLUSION_UNIT) / inclusion, line_entropy(left_out.T)


def check_targets(targets: NDArray[Any], count: int, spec: SampleSpec) -> None:
    """Raise `CodecError` unless targets fit the spec."""
    shape = (count,) if spec.classes else (count, spec.target_size)
    kind = "iu" if spec.classes else "f"
    if targets.shape != shape or targets.dtype.kind not in kind:
        raise CodecError(f"targets are {targets.dtype} {targets.shape}; expected {shape}")
    if not count:
        return
    if spec.classes and not (targets.min() >= 0 and targets.max() < spec.classes):
        raise CodecError(
            f"labels lie in [{targets.min()}, {targets.max()}]; "
            f"legal range: [0, {spec.classes - 1}]"
        )
    if not spec.classes and not (np.abs(targets) <= np.finfo(np.float32).max).all():
        raise CodecError("targets hold NaN, infinity or more; legal: finite float32")
