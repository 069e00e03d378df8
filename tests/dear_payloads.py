"""Small messages that are dear to read: for every codec and compressor, crafted and searched."""

import itertools
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec import CodecError, CodecOptions, DecodeLimits, SamplePayload, SampleSpec, encode_samples
from codec.coding.range_coder import BitEncoder
from codec.gradients import COMPRESSORS, GradientCompressor, make_compressor
from codec.gradients.joined import joined
from codec.samples import columns
from codec.samples.block_dct import codec as block_dct
from codec.samples.channel_axis import ChannelAxis
from codec.samples.spread import Stretch

MOST_BYTES = 1000
LIMITS = DecodeLimits()

_SHAPES: list[tuple[tuple[int, ...], str, float]] = [
    ((1, 28, 28), "uint8", 255),
    ((3, 32, 32), "uint8", 255),
    ((3, 224, 224), "uint8", 255),
    ((16,), "float32", 1),
    ((1,), "float32", 1),
    ((6, 128), "float32", 1),
]
_TARGETS = [(10, 0), (1 << 24, 0), (0, 0), (0, 100)]
_CODECS: list[dict[str, Any]] = [
    {"codec": "dct"},
    {"codec": "dct", "block": 2, "quantizer": "dithered"},
    {"codec": "columns"},
    {"codec": "columns", "relative_to": "range"},
    {"codec": "lossless"},
    {"codec": "png"},
    {"codec": "avif"},
]


def _specs() -> Iterator[SampleSpec]:
    for shape, dtype, high in _SHAPES:
        for classes, target_size in _TARGETS if len(shape) == 1 else _TARGETS[:1]:
            for options in _CODECS:
                kind = SampleSpec(shape, dtype, 0, high, classes, target_size)
                with suppress(CodecError):  # a codec that does not take such samples
                    yield replace(kind, codec=CodecOptions(**options))


SPECS = list(_specs())


def fillings(rng: np.random.Generator) -> Iterator[bytes]:
    """What stands in a section of few bytes."""
    yield b""
    for size in (4, 60, MOST_BYTES):
        yield b"\x01" * size
        yield b"\xff" * size
        yield rng.bytes(size)


def most_samples(spec: SampleSpec, size: int, limits: DecodeLimits = LIMITS) -> int:
    """The most samples that a payload of a size may declare."""
    count = 1
    while not limits.too_dense(spec, 2 * count, size):
        count *= 2
    step = count
    while step := step // 2:
        count += step * (not limits.too_dense(spec, count + step, size))
    return count


def heads(spec: SampleSpec) -> list[bytes]:
    """What stands ahead of entropy-coded values: legal, and such that much follows."""
    if spec.codec.codec == "columns":
        ranges = spec.codec.relative_to == "range"
        return [b"\x17\0", b"\x08\0", b"\x01\0"] if ranges else [b"\x08", b"\x01"]
    if spec.codec.codec != "dct":
        return [b""]
    if spec.codec.relative_to == "range":
        return [b""]
    axis, channels = (64, 1) if len(spec.shape) == 1 else (0, spec.shape[0])
    return [bytes([axis]) + bytes((channels - 1) * (len(spec.shape) == 2))]


def patterns(spec: SampleSpec, count: int) -> Iterator[bytes]:
    """Values as an encoder writes them that makes every symbol dear, and cheap in bytes."""
    width = int(np.prod(spec.shape))
    if spec.codec.codec == "columns" and spec.codec.relative_to == "spread":
        for symbol in (1, 255):
            table = np.full((count, width), symbol)
            table[0] = 0
            yield columns._encode_each(table, np.zeros(width, np.int64))
        table = np.full((count, width), 1 << 20)
        table[0] = 0
        yield columns._encode_each(table, np.zeros(width, np.int64))
    if spec.codec.codec == "columns" and spec.codec.relative_to == "range":
        for symbol in (1, 255, 1 << 20):
            table = np.full((count, width), symbol)
            table[0] = 0
            yield columns._encode_alike(table)
    if spec.codec.codec == "dct":
        axis = ChannelAxis.NONE if len(spec.shape) == 1 else ChannelAxis.FIRST
        transform = block_dct.transform_of(spec, axis)
        channels = axis.coded_shape(spec.shape)[0]
        alike = 1 if len(spec.shape) == 3 else channels
        stretch = Stretch(0.0, 1.0, (0,) * alike, (0,) * alike)
        plan = block_dct.Plan(axis, stretch)
        for magnitude, share in itertools.product((1, 14, 1000), (0.1, 1.0)):
            tables = []
            for level in transform.levels:
                table = np.zeros((level.coefficients, count * level.blocks), np.int64)
                table[: math.ceil(share * len(table))] = magnitude
                tables.append(table)
            coder = BitEncoder()
            block_dct._code_pyramid(coder, spec, plan, count, tables)
            yield plan.to_bytes(spec) + coder.finish()


def cut(data: SamplePayload) -> SamplePayload:
    """A payload no longer than `MOST_BYTES`, its values cut off."""
    spare = MOST_BYTES - len(data.to_bytes())
    if spare >= 0:
        return data
    values = data.sections.get("values", b"")
    return replace(data, sections={**data.sections, "values": values[: len(values) + spare]})


def dear_payloads(spec: SampleSpec, seed: int = 0) -> Iterator[SamplePayload]:
    """Payloads of up to `MOST_BYTES` that declare as many samples as the limits let them."""
    rng = np.random.default_rng(seed)
    empty = SamplePayload(spec, 1, {}, (1 << 62, 1, 1))
    for head in heads(spec):
        for filling in fillings(rng):
            room = MOST_BYTES - len(empty.to_bytes()) - 8
            sections = {"values": (head + filling)[:room]}
            size = len(replace(empty, sections=sections).to_bytes())
            yield replace(empty, sections=sections, count=most_samples(spec, size))
    for targets in fillings(rng):
        sections = {"targets": targets[:400], "weights": targets[:400], "values": heads(spec)[0]}
        size = len(replace(empty, sections=sections).to_bytes())
        yield replace(empty, sections=sections, count=most_samples(spec, size))
    count = most_samples(spec, MOST_BYTES - 20)
    if count * np.prod(spec.shape) < 1 << 20:
        for values in patterns(spec, count):
            yield cut(replace(empty, count=count, sections={"values": values}))
    if spec.codec.codec in ("png", "avif", "lossless"):
        blank = np.zeros((min(count, 4000), *spec.shape), spec.dtype)
        labels = np.zeros(len(blank), np.int64)
        if spec.classes:
            yield cut(encode_samples(blank, labels, spec))


def dear_gradients(
    shapes: list[tuple[int, ...]],
) -> Iterator[tuple[GradientCompressor, bytes]]:
    """Compressed gradients that are small for what they stand for."""
    zeros: list[NDArray[np.float32]] = [np.zeros(shape, np.float32) for shape in shapes]
    for name in COMPRESSORS:
        compressor = joined(make_compressor(name))
        yield compressor, compressor.compress(zeros, None, np.random.default_rng(0))[0]
