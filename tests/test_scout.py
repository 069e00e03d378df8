"""A scout gives the same outputs by NumPy as by torch, and travels in few bytes without loss."""

import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scouts import IMAGES, TABLE, as_scout, batch, made_up, take_steps, trained
from torch import Tensor
from torch.nn import functional

from codec import CodecError, PayloadError, SampleSpec
from codec.coding import cursor
from codec.learning.inputs import float_inputs, model_inputs
from codec.learning.scout import LINEAR, Layer, Layout, Plan, Scout, plan_of, viewed
from codec.learning.scout_bytes import base_of, digest, from_bytes, quantized, to_bytes

pytestmark = pytest.mark.usefixtures("one_thread")

CIFAR = SampleSpec((3, 32, 32), classes=10)
KINDS = {
    "image": SampleSpec((3, 12, 10), classes=4),
    "channels last": SampleSpec((12, 10, 3), classes=4),
    "grey": SampleSpec((9, 11), classes=3),
    "large image": SampleSpec((3, 70, 66), classes=3),
    "series": SampleSpec((2, 40), "float32", 0, 1, classes=3),
    "table": SampleSpec((7,), "float32", 0, 1, classes=3),
    "float target": SampleSpec((7,), "float32", 0, 1),
    "float targets": SampleSpec((3, 12, 12), "float32", 0, 1, target_size=2),
}

GOLDEN = (
    "514453430100000105010200040002000000000000803e0000003f0000403f0000803f0000804000"
    "008040000080400000804000008040000ff000c69731a7076fd65f89a08db9e8ed0d02c01a3648f9"
    "9b86fac746f53407e1654dde50a8b3054d886f2c401d4ba0b0"
)
GOLDEN_DIGEST = "c15d37db380635dc"
GOLDEN_CHANGE = (
    "514453430101c15d37db380635dc0000f00f762dff773f82e5ea4fa1a52b650415bf0d2483bf2076"
    "6cc6337ff35e348835f66843f8147261e599ee4e0189"
)


def reference(scout: Scout, samples: NDArray[Any]) -> Tensor:
    """The outputs by torch, layer by layer."""
    values = torch.from_numpy((viewed(samples, scout.plan) - scout.centre) * scout.factor)
    if values.ndim == 4:
        values = values.permute(0, 3, 1, 2)
    for place, ((stride, _), layer) in enumerate(zip(scout.plan.layers, scout.layers, strict=True)):
        weights, biases = map(torch.from_numpy, layer.floats())
        if stride == LINEAR:
            values = values.mean(dim=(2, 3)) if values.ndim == 4 else values
            values = functional.linear(values, weights, biases)
        else:
            filters = weights.reshape(len(weights), 3, 3, -1).permute(0, 3, 1, 2)
            values = functional.conv2d(values, filters, biases, stride, padding=1)
        if place < len(scout.layers) - 1:
            values = torch.relu(values)
    return values


@pytest.mark.parametrize("kind", KINDS)
def test_numpy_agrees_with_torch(kind: str) -> None:
    network = trained(KINDS[kind]).eval()
    samples, _ = batch(KINDS[kind], 70, seed=1)
    scout = as_scout(network)
    found, features = scout.outputs(samples)
    assert features.shape == (70, scout.plan.fan_ins[-1])
    spread = float(found.std())
    np.testing.assert_allclose(found, reference(scout, samples), atol=1e-4 * spread, rtol=1e-5)
    # Folded and in 8 bits it is still the network that was trained.
    with torch.no_grad():
        exact = network(torch.from_numpy(samples)).numpy()
    assert np.abs(found - exact).max() < 0.1 * exact.std()


def test_float_targets_are_learned_in_their_units() -> None:
    spec = KINDS["float target"]
    samples, targets = batch(spec, seed=2)
    found, _ = as_scout(trained(spec, steps=200)).outputs(samples)
    assert np.abs(found[:, 0] - targets).mean() < 0.5 * targets.std()


def test_the_model_and_the_scout_see_the_same() -> None:
    samples = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 4)).astype(np.uint8)
    for scale in ("auto", "unit", "none"):
        spec = SampleSpec((3, 4, 4), classes=2)
        expected = model_inputs(samples, spec, scale).numpy()
        assert np.array_equal(float_inputs(samples, spec, scale), expected)


def test_sizes() -> None:
    """Whole under 64 kB, a change smaller than the whole, fewer bits smaller yet."""
    network = trained(CIFAR, steps=3)
    before = {bits: as_scout(network, bits) for bits in (8, 4)}
    take_steps(network, CIFAR, 1)
    for bits, base in before.items():
        scout = as_scout(network, bits, base)
        assert 15_000 < scout.plan.weights < 50_000
        whole, change = to_bytes(scout), to_bytes(scout, base)
        assert len(change) < 0.8 * len(whole) < 0.8 * 64 * 1024
        assert np.abs(scout.layers[1].weights).max() <= 2 ** (bits - 1) - 1
    assert len(to_bytes(before[4])) < 0.6 * len(to_bytes(before[8]))


def test_steps_stay_where_they_fit() -> None:
    network = trained(CIFAR, steps=3)
    base = as_scout(network)
    take_steps(network, CIFAR, 1)
    kept = as_scout(network, before=base)
    same = [
        np.array_equal(a.exponents, b.exponents)
        for a, b in zip(kept.layers, base.layers, strict=True)
    ]
    assert any(same)
    for layer, (weights, _) in zip(kept.layers, network.folded(), strict=True):
        found, _ = layer.floats()
        # No weight is cut off, and none is rounded by more than half of a step.
        steps = np.float32(2.0) ** (layer.exponents / 2)
        assert (np.abs(found - weights) <= 0.501 * steps[:, None]).all()


def test_golden_bytes() -> None:
    table, other = made_up(TABLE), made_up(TABLE, seed=1)
    whole = to_bytes(table)
    assert whole.hex() == GOLDEN
    assert digest(whole).hex() == GOLDEN_DIGEST
    assert to_bytes(other, table).hex() == GOLDEN_CHANGE


def same(one: Scout, other: Scout) -> bool:
    return to_bytes(one) == to_bytes(other) and all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for a, b in zip(one.layers, other.layers, strict=True)
        for name in ("weights", "biases", "exponents")
    )


@st.composite
def scouts(draw: st.DrawFn, plan: Plan = IMAGES) -> Scout:
    layers = []
    for fan_in, (_, outputs) in zip(plan.fan_ins, plan.layers, strict=True):
        rng = np.random.default_rng(draw(st.integers(0, 2**32)))
        largest = draw(st.sampled_from([1, 7, 127]))
        weights = rng.integers(-largest, largest + 1, (outputs, fan_in))
        bias = draw(st.integers(-(2**40), 2**40))
        width = draw(st.sampled_from([0, 120]))
        exponents = rng.integers(-width, width + 1, outputs)
        layers.append(Layer(weights, np.full(outputs, bias), exponents))
    numbers = st.floats(-1e9, 1e9, width=32)
    inputs = [np.array([draw(numbers) for _ in range(plan.channels)], np.float32) for _ in "cf"]
    return Scout(plan, inputs[0], inputs[1], tuple(layers))


@settings(max_examples=40, deadline=None)
@given(scouts(), scouts())
def test_round_trip(scout: Scout, other: Scout) -> None:
    whole = to_bytes(scout)
    assert base_of(whole) == b"" and same(from_bytes(whole), scout)
    changed = replace(other, centre=scout.centre, factor=scout.factor)
    change = to_bytes(changed, scout)
    assert base_of(change) == digest(whole)
    assert same(from_bytes(change, scout), changed)


def test_a_change_needs_its_base() -> None:
    scout, base, stranger = (made_up(seed=seed) for seed in range(3))
    change = to_bytes(scout, base)
    named = digest(to_bytes(base)).hex()
    for wrong in (None, stranger):
        with pytest.raises(PayloadError, match=f"change of the scout {named}"):
            from_bytes(change, wrong)


def test_a_change_brings_no_other_inputs() -> None:
    base = made_up()
    other = replace(made_up(seed=1), factor=base.factor + 1)
    with pytest.raises(CodecError, match="plan, centre and factor"):
        to_bytes(other, base)


def test_altered_bytes_are_refused() -> None:
    base, scout = made_up(TABLE), made_up(TABLE, seed=1)
    for data in (to_bytes(scout), to_bytes(scout, base)):
        for place in range(len(data)):
            altered = bytearray(data)
            altered[place] ^= 1 << (place % 8)
            with pytest.raises(PayloadError):
                from_bytes(bytes(altered), base)
            with pytest.raises(PayloadError):
                from_bytes(data[:place], base)


def checked(body: bytes) -> bytes:
    """Bytes with the checksum that they should have."""
    return body + zlib.crc32(body).to_bytes(4, "little")


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60), st.integers(4, 200), st.booleans())
def test_hostile_bytes_are_refused_or_read(noise: bytes, place: int, change: bool) -> None:
    """Nothing but `PayloadError` comes out, and no network that gives NaN."""
    base = made_up(TABLE)
    data = to_bytes(made_up(TABLE, seed=1), base if change else None)[:-4]
    try:
        scout = from_bytes(checked(data[:place] + noise), base)
    except PayloadError:
        return
    assert scout.plan.weights <= 1 << 18
    if scout.plan.shape == (5,):
        with np.errstate(over="ignore", invalid="ignore"):
            logits, _ = scout.outputs(np.ones((2, 5), np.float32))
        assert logits.shape == (2, scout.plan.layers[-1][1])


def headers() -> Iterator[tuple[str, list[int]]]:
    """What is wrong, and layout, axes, shape, pool, number of layers, layers."""
    yield "layout 9", [9, 1, 5, 1, 1, 0, 2]
    yield "9 axes", [0, 9, *[1] * 9, 1, 1, 0, 2]
    yield "3 axes are needed", [1, 1, 5, 1, 2, 1, 4, 0, 2]
    yield "values averaged", [0, 1, 5, 6, 1, 0, 2]
    yield "values averaged", [0, 1, 5, 0, 1, 0, 2]
    yield "9 layers", [0, 1, 5, 1, 9, *[0, 2] * 9]
    yield "convolutions, then", [1, 3, 3, 8, 8, 1, 3, 1, 4, 0, 2, 1, 4]
    yield "for the layout", [0, 1, 5, 1, 2, 1, 4, 0, 2]
    yield "strides 1 and 2", [1, 3, 3, 8, 8, 1, 2, 3, 4, 0, 2]
    yield "weights and", [0, 1, 2**20, 1, 1, 0, 2**40]
    yield "operations", [1, 3, 3, 2**20, 2**20, 1, 2, 1, 4, 0, 2]


@pytest.mark.parametrize(("problem", "numbers"), list(headers()))
def test_headers_that_no_encoder_writes(problem: str, numbers: list[int]) -> None:
    head = b"QDSC\x01\x00" + bytes([numbers[0]]) + b"".join(map(cursor.varint, numbers[1:]))
    with pytest.raises(PayloadError, match=problem):
        from_bytes(checked(head + bytes(64)))


def test_other_samples_are_refused() -> None:
    with pytest.raises(CodecError, match=r"\(2, 5, 6\); the scout takes \(2, 6, 5\)"):
        made_up().outputs(np.zeros((1, 2, 5, 6), np.float32))
    with pytest.raises(CodecError, match="scorer model"):
        plan_of(SampleSpec((16,), "int32", 0, 100, classes=2), 2)


def test_plans() -> None:
    assert plan_of(CIFAR, 10).layout is Layout.FIRST
    assert plan_of(SampleSpec((224, 224, 3), classes=10), 10).layout is Layout.LAST
    assert plan_of(SampleSpec((224, 224, 3), classes=10), 10).sides == (32, 32)
    assert plan_of(SampleSpec((28, 28), classes=10), 10).layout is Layout.GREY
    wide = plan_of(SampleSpec((20_000,), "float32", classes=10), 10)
    assert wide.channels == 4000 and wide.weights < 60_000


def test_weights_that_are_no_numbers() -> None:
    layers = [layer.floats() for layer in made_up(TABLE).layers]
    layers[0][0][0, 0] = np.nan
    inputs = np.zeros(5, np.float32)
    with pytest.raises(CodecError, match="diverged"):
        quantized(TABLE, inputs, inputs, layers)
    layers[0][0][0, 0] = 1e30
    with pytest.raises(CodecError, match="too large"):
        quantized(TABLE, inputs, inputs, layers)
