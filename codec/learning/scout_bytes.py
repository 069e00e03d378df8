"""How a scout travels: quantized to few bits, entropy-coded, whole or as the change of another.

Layout: magic, version and form (a byte each); whole: the plan, centre and factor of the inputs; as
a change: the digest of the scout that it changes. Then one stream of the range coder, layer by
layer: exponents, weights, biases; and the CRC-32 (little-endian) of everything before it. See
``docs/payload.md``.
"""

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from codec.coding import cursor
from codec.coding.columns import code_columns, code_integers
from codec.coding.range_coder import BitCoder, BitDecoder, BitEncoder
from codec.errors import CodecError, PayloadError
from codec.learning.scout import (
    EXPONENTS,
    LARGEST,
    LARGEST_BIAS,
    MAX_LAYERS,
    Floats,
    Ints,
    Layer,
    Layout,
    Plan,
    Scout,
    step_sizes,
)

MAGIC = b"QDSC"
VERSION = 1
WHOLE, CHANGE = 0, 1
DIGEST_BYTES = 8

_CHECKSUM_BYTES = 4
_MAX_AXES = 4
_WEIGHT_BITS = 8
_BIAS_BITS = 20  # of a bias whose output has hardly any weights
_SPARE = 2  # half octaves that an exponent may be too high before it is chosen anew


def quantized(
    plan: Plan,
    centre: Floats,
    factor: Floats,
    layers: Sequence[tuple[Floats, Floats]],
    bits: int = 8,
    before: Scout | None = None,
) -> Scout:
    """Round a network of floats to whole numbers.

    Parameters
    ----------
    plan : Plan
    centre, factor : (channels,) float32 array
    layers : sequence of (outputs, fan-in) and (outputs,) float arrays
        Weights and biases.
    bits : int
        Of a weight, 2 to 8; each output has its own step.
    before : Scout, optional
        An earlier version, whose steps are kept where they still fit: less is to be sent then.

    Raises
    ------
    CodecError
        If a number is not finite, or too large.
    """
    largest = min(LARGEST, (1 << (bits - 1)) - 1)
    rounded = []
    for place, (weights, biases) in enumerate(layers):
        if not (np.isfinite(weights).all() and np.isfinite(biases).all()):
            raise CodecError("the scout has weights that are not finite: its training has diverged")
        needed = np.maximum(
            np.abs(weights).max(axis=1).astype(np.float64) / largest,
            np.abs(biases) / float(1 << _BIAS_BITS),
        )
        exponents = np.ceil(2 * np.log2(np.maximum(needed, 2.0 ** (EXPONENTS[0] / 2))))
        exponents = exponents.astype(np.int64)
        if exponents.max(initial=0) not in EXPONENTS:
            raise CodecError(f"the scout has weights up to {np.abs(weights).max()}, too large")
        if before is not None:
            kept = before.layers[place].exponents
            fits = (kept >= exponents) & (kept <= exponents + _SPARE)
            exponents = np.where(fits, kept, exponents)
        steps = step_sizes(exponents)
        whole = np.rint(weights / steps[:, None]).clip(-largest, largest).astype(np.int64)
        bias = np.rint(biases / steps).clip(-LARGEST_BIAS, LARGEST_BIAS).astype(np.int64)
        rounded.append(Layer(whole, bias, exponents))
    return Scout(plan, centre, factor, tuple(rounded))


def to_bytes(scout: Scout, base: Scout | None = None) -> bytes:
    """Return a scout as it travels: whole, or as the change of a base.

    Raises
    ------
    CodecError
        If the base has another plan, centre or factor: a change does not bring these.
    """
    if base is not None and _plan_bytes(base) != _plan_bytes(scout):
        raise CodecError("a scout changes only one that has its plan, centre and factor")
    if base is None:
        head = bytes([WHOLE]) + _plan_bytes(scout)
    else:
        head = bytes([CHANGE]) + digest(to_bytes(base))
    coder = BitEncoder()
    _code_layers(coder, scout.plan, scout.layers, base)
    body = MAGIC + bytes([VERSION]) + head + coder.finish()
    return body + zlib.crc32(body).to_bytes(_CHECKSUM_BYTES, "little")


def digest(whole: bytes) -> bytes:
    """Return what a scout is known by, (8,) bytes: a digest of its whole form."""
    return hashlib.blake2b(whole, digest_size=DIGEST_BYTES).digest()


def base_of(data: bytes) -> bytes:
    """Return the digest of the scout that bytes change; empty if they are a whole one.

    Raises
    ------
    PayloadError
        If the bytes are not a scout.
    """
    reader = _opened(data)
    return reader.take(DIGEST_BYTES, "digest") if reader.byte("form") == CHANGE else b""


def from_bytes(data: bytes, base: Scout | None = None) -> Scout:
    """Read what `to_bytes` wrote.

    Parameters
    ----------
    data : bytes
    base : Scout, optional
        What a change is made to; its digest must be the one named.

    Raises
    ------
    PayloadError
        If the bytes are not a scout, or change another one.
    """
    reader = _opened(data)
    form = reader.byte("form")
    if form == CHANGE:
        named = reader.take(DIGEST_BYTES, "digest")
        if base is None or digest(to_bytes(base)) != named:
            raise PayloadError(f"change of the scout {named.hex()}, which is not there")
        like = base
    elif form == WHOLE:
        like, base = _read_plan(reader), None
    else:
        raise PayloadError(f"form {form} of a scout; legal: {WHOLE} and {CHANGE}")
    layers = _code_layers(BitDecoder(reader.rest()), like.plan, None, base)
    return replace(like, layers=layers)


def _opened(data: bytes) -> cursor.Reader:
    """Return a cursor behind magic and version, the checksum cut off."""
    if len(data) < len(MAGIC) + 1 + _CHECKSUM_BYTES or data[: len(MAGIC)] != MAGIC:
        raise PayloadError(f"{len(data)} bytes that do not begin as a scout")
    body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if zlib.crc32(body) != int.from_bytes(checksum, "little"):
        raise PayloadError("checksum of the scout does not match")
    reader = cursor.Reader(body)
    reader.take(len(MAGIC), "magic")
    version = reader.byte("version")
    if version != VERSION:
        raise PayloadError(f"scout format version {version}, only {VERSION} is known")
    return reader


def _plan_bytes(scout: Scout) -> bytes:
    plan = scout.plan
    numbers = [len(plan.shape), *plan.shape, plan.pool, len(plan.layers)]
    for stride, outputs in plan.layers:
        numbers += [stride, outputs]
    inputs = np.stack([scout.centre, scout.factor]).astype("<f4").tobytes()
    return bytes([plan.layout]) + b"".join(map(cursor.varint, numbers)) + inputs


def _read_plan(reader: cursor.Reader) -> Scout:
    """Return a scout without its layers."""
    layout = reader.byte("layout")
    if layout not in list(Layout):
        raise PayloadError(f"layout {layout} of a scout; legal: 0 to {len(Layout) - 1}")
    axes = reader.varint("axes")
    if not 1 <= axes <= _MAX_AXES:
        raise PayloadError(f"{axes} axes of a scout's samples; legal: 1 to {_MAX_AXES}")
    shape = tuple(reader.varint("shape") for _ in range(axes))
    pool, count = reader.varint("pool"), reader.varint("layers")
    if count > MAX_LAYERS:
        raise PayloadError(f"{count} layers of a scout; legal: at most {MAX_LAYERS}")
    layers = tuple((reader.varint("stride"), reader.varint("outputs")) for _ in range(count))
    try:
        plan = Plan(Layout(layout), shape, pool, layers)
    except CodecError as error:
        raise PayloadError(str(error)) from error
    size = 4 * plan.channels
    centre, factor = (
        np.frombuffer(reader.take(size, what), "<f4").astype(np.float32)
        for what in ("centre", "factor")
    )
    if not (np.isfinite(centre).all() and np.isfinite(factor).all()):
        raise PayloadError("centre and factor of a scout must be finite")
    return Scout(plan, centre, factor, ())


def _code_layers(
    coder: BitCoder, plan: Plan, layers: Sequence[Layer] | None, base: Scout | None
) -> tuple[Layer, ...]:
    """Code layers in either direction; `layers` is None when decoding."""
    coded = []
    for place, (_, outputs) in enumerate(plan.layers):
        before = None if base is None else base.layers[place]
        own = None if layers is None else layers[place]
        coded.append(_code_layer(coder, outputs, plan.fan_ins[place], own, before))
    return tuple(coded)


def _code_layer(
    coder: BitCoder, outputs: int, fan_in: int, own: Layer | None, before: Layer | None
) -> Layer:
    """Code one layer: what differs from what the layer before says of it."""
    zeros = np.zeros(outputs, np.int64)
    guess = zeros if before is None else before.exponents
    told = None if own is None else (own.exponents - guess)[:, None]
    exponents = guess + code_integers(coder, outputs, 1, told)[:, 0]
    if exponents.min() not in EXPONENTS or exponents.max() not in EXPONENTS:
        raise PayloadError(f"exponents of a scout's steps reach {exponents.min()}")
    if before is None:
        weights, biases = np.zeros((outputs, fan_in), np.int64), zeros
    else:
        ratio = step_sizes(before.exponents - exponents)
        weights = np.rint(before.weights * ratio[:, None]).clip(-LARGEST, LARGEST).astype(np.int64)
        biases = np.rint(before.biases * ratio).clip(-LARGEST_BIAS, LARGEST_BIAS).astype(np.int64)
    change = None if own is None else _folded(own.weights - weights).reshape(-1, 1)
    found = code_columns(coder, _WEIGHT_BITS, outputs * fan_in, 1, change)
    weights = _wrapped(weights + _unfolded(found).reshape(outputs, fan_in))
    told = None if own is None else (own.biases - biases)[:, None]
    biases = biases + code_integers(coder, outputs, 1, told)[:, 0]
    if np.abs(biases).max() > LARGEST_BIAS:
        raise PayloadError(f"bias {biases[np.abs(biases).argmax()]} of a scout; at most 2^40")
    return Layer(weights, biases, exponents)


def _wrapped(values: Ints) -> Ints:
    """Return numbers modulo 256, in [-128, 127]."""
    return np.asarray((values + 128) % 256 - 128)


def _folded(values: Ints) -> Ints:
    """Return numbers modulo 256, those near zero as low ones, in [0, 255]."""
    near = _wrapped(values)
    return np.where(near < 0, -2 * near - 1, 2 * near)


def _unfolded(values: Ints) -> Ints:
    return np.where(values % 2 == 1, -((values + 1) >> 1), values >> 1)
