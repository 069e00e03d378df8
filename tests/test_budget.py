from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from clients.budget import Encoder, encode_within_budget
from clients.selection import Selection, make_selector, ranked_selector
from codec import CodecError, CodecOptions, SamplePayload, SampleSpec, decode_samples

LOSSLESS = SampleSpec((1, 6, 6), "uint8", 0, 255, classes=4, codec=CodecOptions("lossless"))
COARSE = SampleSpec((1, 6, 6), "uint8", 0, 255, classes=4, codec=CodecOptions(step=0.05))


def data(count: int = 600) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    smooth = rng.integers(0, 200, (count, 1, 1, 1)) + rng.integers(0, 50, (count, 1, 6, 6))
    return smooth.astype(np.uint8), rng.integers(0, 4, count)


def test_the_payload_holds_the_selected_samples_in_order() -> None:
    samples, targets = data()
    selection = Selection(np.array([3, 5, 400]), np.array([256, 64, 1], np.uint16))
    encoded = Encoder(LOSSLESS, (0, 1, 2)).encode(samples, targets, selection)
    decoded = decode_samples(SamplePayload.from_bytes(encoded))
    assert (decoded.samples == samples[[3, 5, 400]]).all()
    assert (decoded.targets == targets[[3, 5, 400]]).all()
    assert decoded.weights.tolist() == [1.0, 4.0, 256.0]


def test_sorting_by_label_keeps_samples_labels_and_weights_together() -> None:
    samples, targets = data()
    positions = np.arange(0, 600, 7)
    inclusion = (1 + positions % 256).astype(np.uint16)
    encoder = Encoder(LOSSLESS, (0, 0, 0), by_label=True)
    data_bytes = encoder.encode(samples, targets, Selection(positions, inclusion))
    decoded = decode_samples(SamplePayload.from_bytes(data_bytes))
    order = positions[np.argsort(targets[positions], kind="stable")]
    assert (np.diff(decoded.targets) >= 0).all()
    assert (decoded.samples == samples[order]).all()
    np.testing.assert_allclose(decoded.weights, 256 / (1 + order % 256), rtol=1e-6)


def test_sorted_labels_cost_fewer_bytes() -> None:
    samples, targets = data()
    everything = Selection(np.arange(600))
    sizes = []
    for by_label in (False, True):
        encoded = Encoder(COARSE, (0, 0, 0), by_label).encode(samples, targets, everything)
        sizes.append(SamplePayload.from_bytes(encoded).section_bytes()["targets"])
    assert sizes[1] < sizes[0] / 4


def test_nothing_selected_takes_no_bytes() -> None:
    samples, targets = data()
    assert Encoder(COARSE, (0, 0, 0)).encode(samples, targets, Selection(np.arange(0))) == b""


def test_the_same_key_gives_the_same_bytes() -> None:
    samples, targets = data(20)
    spec = SampleSpec((1, 6, 6), classes=4, codec=CodecOptions(quantizer="dithered"))
    one, same, other = (
        Encoder(spec, key).encode(samples, targets, Selection(np.arange(20)))
        for key in ((1, 2, 3), (1, 2, 3), (1, 2, 4))
    )
    assert one == same != other


@pytest.mark.parametrize("rule", ["probability", "top"])
@pytest.mark.parametrize("budget", [400, 1000, 2500])
def test_budget_is_filled_and_never_exceeded(rule: str, budget: int) -> None:
    samples, targets = data()
    scores = np.random.default_rng(1).exponential(size=600)
    encoder = Encoder(COARSE, (0, 0, 0))
    select = make_selector(rule, scores, 0.2, np.random.default_rng(2))
    tried = []

    def encode(selection: Selection) -> bytes:
        tried.append(len(selection))
        return encoder.encode(samples, targets, selection)

    encoded = encode_within_budget(select, encode, 600.0, budget)
    assert 0.95 * budget <= len(encoded.data) <= budget
    assert len(tried) <= 4
    assert SamplePayload.from_bytes(encoded.data).count == len(encoded.selection)
    if rule != "probability":
        assert set(encoded.selection.positions) == set(
            np.argsort(-scores)[: len(encoded.selection)]
        )


def test_what_fits_is_sent_whole() -> None:
    samples, targets = data()
    encoder = Encoder(COARSE, (0, 0, 0))
    select = ranked_selector(np.ones(600), np.random.default_rng(3))
    for budget in (0, 10**6):
        encoded = encode_within_budget(
            select, lambda chosen: encoder.encode(samples, targets, chosen), 600 * 0.5, budget
        )
        assert len(encoded.selection) == 300


def test_a_budget_below_one_sample_is_named() -> None:
    samples, targets = data()
    encoder = Encoder(COARSE, (0, 0, 0))
    select = ranked_selector(np.ones(600), np.random.default_rng(3))
    with pytest.raises(CodecError, match="uplink-budget = 30 bytes is less than one sample"):
        encode_within_budget(
            select, lambda chosen: encoder.encode(samples, targets, chosen), 600, 30
        )


@pytest.mark.parametrize("quantizer", ["nearest", "dithered", "stochastic"])
@pytest.mark.parametrize("name", ["dct", "columns", "lossless", "jpeg", "png"])
def test_the_encoder_knows_what_the_server_will_see(name: str, quantizer: str) -> None:
    samples, targets = data(40)
    codec = CodecOptions(name, quantizer=quantizer, step=0.3)
    encoder = Encoder(replace(COARSE, codec=codec), (3, 1, 2))
    selection = Selection(np.array([1, 5, 30]), np.array([256, 17, 90], np.uint16))
    decoded = decode_samples(SamplePayload.from_bytes(encoder.encode(samples, targets, selection)))
    known = encoder.reconstruct(samples, targets, selection)
    for name in ("samples", "targets", "weights"):
        np.testing.assert_array_equal(getattr(known, name), getattr(decoded, name))
