"""Targets and importance weights of samples to bytes and back."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.coding.columns import code_columns
from codec.coding.entropy import line_entropy
from codec.coding.range_coder import BitDecoder, BitEncoder, Ints
from codec.errors import CodecError, PayloadError
from codec.samples.payload import TARGETS, VOCABULARY, WEIGHTS, SamplePayload
from codec.samples.spec import SampleSpec

INCLUSION_UNIT = 256
"""Inclusion probabilities are k/256, which both ends know exactly."""

_LARGEST_VOCABULARY = 64  # different floats in the targets that are coded by their number


def encode_targets(targets: NDArray[Any], spec: SampleSpec) -> dict[str, bytes]:
    """Return labels, or float targets, as sections.

    Floats of few different values, such as those of multi-label and soft targets, are coded as
    numbers into a vocabulary where that is smaller; others byte by byte.
    """
    if spec.classes:
        return {TARGETS: _encode_labels(targets.astype(np.int64), spec)}
    floats = np.ascontiguousarray(targets, "<f4").reshape(len(targets), -1)
    plain, numbered = _encode_bytes(floats), _encode_numbers(floats)
    if numbered is None or _size(plain) <= _size(numbered):
        return plain
    return numbered


def _size(sections: dict[str, bytes]) -> int:
    return sum(map(len, sections.values()))


def _encode_bytes(floats: NDArray[np.float32]) -> dict[str, bytes]:
    coder, table = BitEncoder(), floats.view(np.uint8).astype(np.int64)
    code_columns(coder, 8, len(table), table.shape[1], table)
    return {TARGETS: coder.finish()}


def _encode_numbers(floats: NDArray[np.float32]) -> dict[str, bytes] | None:
    """Return numbers and vocabulary; None if there are too many different floats."""
    # By their bits, so that every float is kept as it is, minus zero among them.
    words, numbers = np.unique(floats.view("<u4"), return_inverse=True)
    if len(words) > _LARGEST_VOCABULARY:
        return None
    coder, (rows, columns) = BitEncoder(), floats.shape
    table = numbers.reshape(rows, columns).astype(np.int64)
    code_columns(coder, (len(words) - 1).bit_length(), rows, columns, table)
    return {TARGETS: coder.finish(), VOCABULARY: words.astype("<u4").tobytes()}


def _encode_labels(labels: Ints, spec: SampleSpec) -> bytes:
    coder, table = BitEncoder(), labels.reshape(-1, 1)
    # Labels in ascending order are coded by their differences, which are nearly all zero.
    ascending = bool((np.diff(labels) >= 0).all())
    table = np.diff(table, axis=0, prepend=0) if ascending else table
    code_columns(coder, (spec.classes - 1).bit_length(), *table.shape, table)
    return bytes([ascending]) + coder.finish()


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
    floats, entropy = _decode_floats(payload, max(1, spec.target_size))
    if not np.isfinite(floats).all():
        raise PayloadError("targets decode to numbers that are not finite")
    return floats.reshape(payload.count, *spec.target_shape), entropy


def _decode_floats(payload: SamplePayload, columns: int) -> tuple[NDArray[np.float32], float]:
    coder = BitDecoder(payload.sections.get(TARGETS, b""))
    vocabulary = payload.sections.get(VOCABULARY, b"")
    if not vocabulary:
        planes = code_columns(coder, 8, payload.count, 4 * columns, None)
        return planes.astype(np.uint8).view("<f4").astype(np.float32), line_entropy(planes.T)
    if len(vocabulary) % 4 or len(vocabulary) > 4 * _LARGEST_VOCABULARY:
        raise PayloadError(
            f"vocabulary of {len(vocabulary)} bytes; legal: 4 to {4 * _LARGEST_VOCABULARY}"
        )
    words = np.frombuffer(vocabulary, "<f4").astype(np.float32)
    table = code_columns(coder, (len(words) - 1).bit_length(), payload.count, columns, None)
    if table.max(initial=0) >= len(words):
        raise PayloadError(f"target number {table.max()}; legal range: [0, {len(words) - 1}]")
    return words[table], line_entropy(table.T)


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
    shape = (count, *spec.target_shape)
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
