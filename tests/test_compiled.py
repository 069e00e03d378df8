"""Compiled kernels against the code that they mirror: the same bytes, samples and refusals."""

import logging
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from codec import CodecOptions, SamplePayload, SampleSpec, decode_samples, encode_samples
from codec.coding.range_coder import AdaptiveBits, BitDecoder, BitEncoder, code_unary
from codec.compilation import _works, compiled, is_compiled
from codec.errors import PayloadError

pytest.importorskip("numba")
from codec.coding import compiled as kernels

Operation = tuple[Any, NDArray[np.int32]]
SHAPES = [(3, 32, 32), (1, 28, 28), (3, 17, 31), (2, 8, 8), (9, 16, 16), (3, 300), (1, 20)]


@st.composite
def operations(draw: st.DrawFn) -> list[Operation]:
    """Draw bits with their probabilities, or with none where they are sent as they are."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    found: list[Operation] = []
    for _ in range(draw(st.integers(0, 5))):
        count = draw(st.integers(0, 300))
        p_one = rng.random(count) ** draw(st.sampled_from([0.05, 1.0, 20.0]))
        p_one = 1 - p_one if draw(st.booleans()) else p_one
        even = draw(st.booleans())
        bits = (rng.random(count) < (0.5 if even else p_one)).astype(np.int32)
        found.append((None if even else p_one, bits))
    return found


def coded(coder: Any, steps: list[Operation], *, decoding: bool) -> list[NDArray[np.int32]]:
    found = []
    for p_one, bits in steps:
        given_bits = None if decoding else bits.copy()
        if p_one is None:
            found.append(coder.code_even(len(bits), given_bits))
        else:
            found.append(coder.code(p_one, given_bits))
    return found


def outcome(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except PayloadError as error:
        return str(error)[:37]  # what follows is the library's


@given(operations(), st.data())
@settings(deadline=None, max_examples=150)
def test_the_coder_writes_the_same_bytes_and_reads_any_alike(
    steps: list[Operation], data: st.DataObject
) -> None:
    streams = []
    for coder in (BitEncoder(), kernels.Coder()):
        coded(coder, steps, decoding=False)
        streams.append(coder.finish())
    assert streams[0] == streams[1]
    whole = streams[0]
    cut = data.draw(st.integers(0, len(whole)))
    for stream in (whole, whole[:cut], data.draw(st.binary(max_size=60))):
        read = [
            outcome(partial(coded, coder, steps, decoding=True))
            for coder in (BitDecoder(stream), kernels.Coder(stream))
        ]
        assert type(read[0]) is type(read[1])
        equal = map(np.array_equal, read[0], read[1])
        assert read[0] == read[1] if isinstance(read[0], str) else all(equal)
    read_back = coded(kernels.Coder(whole), steps, decoding=True)
    assert all(map(np.array_equal, read_back, (bits for _, bits in steps)))


@pytest.mark.parametrize("largest", [3, 40, 2**22])
def test_runs_and_escapes_are_coded_alike(largest: int) -> None:
    rng = np.random.default_rng(largest)
    contexts = rng.integers(0, 3, 3000)
    values = rng.integers(0, largest, 3000) // rng.integers(1, largest, 3000)
    fresh = [AdaptiveBits(np.array([0.5, 0.3, 0.1])) for _ in range(5)]
    encoder, coder = BitEncoder(), kernels.Coder()
    tables = kernels.Tables.of(*fresh)
    code_unary(encoder, fresh, contexts, values)
    room = coder.kernel(70 * len(values))
    kernels.code_unary(room, tables, contexts, values.copy())
    stream = encoder.finish()
    assert coder.finish() == stream
    again = kernels.Tables.of(*[AdaptiveBits(np.array([0.5, 0.3, 0.1])) for _ in range(5)])
    read, decoder = np.zeros(len(values), np.int64), kernels.Coder(stream)
    kernels.code_unary(decoder.kernel(0), again, contexts, read)
    decoder.check()
    assert np.array_equal(read, values)
    assert np.array_equal(again.ones, tables.ones) and np.array_equal(again.total, tables.total)


@given(
    st.sampled_from(SHAPES),
    st.sampled_from([0.004, 0.05, 0.5, 3.0]),
    st.sampled_from(["nearest", "dithered"]),
    st.sampled_from(["spread", "range"]),
    st.integers(1, 9),
    st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=60)
def test_payloads_are_the_same_bytes_and_samples(
    shape: tuple[int, ...], step: float, quantizer: str, relative_to: str, count: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rough = rng.normal(size=(count, *shape)).cumsum(axis=-1)
    samples = np.clip(127 + rng.choice([3, 20, 90]) * rough, 0, 255).astype(np.uint8)
    options = CodecOptions("dct", step=step, quantizer=quantizer, relative_to=relative_to)
    spec = SampleSpec(shape, classes=3, codec=options)
    targets = rng.integers(0, 3, count)
    found = []
    for wanted in (False, True):
        with compiled(wanted):
            assert is_compiled() == wanted
            payload = encode_samples(samples, targets, spec)
            found.append((payload.to_bytes(), decode_samples(payload).samples))
    assert found[0][0] == found[1][0]
    assert np.array_equal(found[0][1], found[1][1])


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_damaged_payloads_are_read_or_refused_alike(data: st.DataObject) -> None:
    rng = np.random.default_rng(1)
    samples = rng.integers(0, 256, (4, 3, 16, 16)).astype(np.uint8)
    spec = SampleSpec((3, 16, 16), classes=2, codec=CodecOptions("dct", step=0.3))
    whole = bytearray(encode_samples(samples, np.zeros(4, np.int64), spec).to_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(len(whole) // 2, len(whole) - 1))] = data.draw(
            st.integers(0, 255)
        )
    found = []
    for wanted in (False, True):
        with compiled(wanted):
            read = outcome(lambda: decode_samples(SamplePayload.from_bytes(bytes(whole))).samples)
            found.append(read)
    assert type(found[0]) is type(found[1])
    assert found[0] == found[1] if isinstance(found[0], str) else np.array_equal(*found)


def test_without_numba_that_works_samples_are_coded_as_before(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _works.cache_clear()
    monkeypatch.setitem(sys.modules, "codec.samples.block_dct.compiled", None)
    logging.getLogger("flwr").propagate = True
    try:
        assert not is_compiled()
        assert "NUMBA_CACHE_DIR" in caplog.text
    finally:
        _works.cache_clear()
