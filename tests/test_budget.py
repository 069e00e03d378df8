import tracemalloc
from typing import Any

import numpy as np
import pytest
from images import fields
from numpy.typing import NDArray

from clients import ArraySource
from clients.budget import Encoder, encode_within_budget
from clients.reading import Reader
from clients.selection import Selection, make_selector, ranked_selector
from codec import (
    CodecError,
    CodecOptions,
    DecodeLimits,
    PayloadError,
    SamplePayload,
    decode_samples,
)
from codec.messages import Terms

LOSSLESS, COARSE = CodecOptions("lossless"), CodecOptions(step=0.05)


def encoder_of(
    codec: CodecOptions, key: tuple[int, int, int] = (0, 0, 0), by_label: bool = False, **terms: int
) -> Encoder:
    source = ArraySource(*data(), 4, 0.0, 255.0)
    return Encoder(Reader(source, Terms(**terms)), codec, key, by_label)


def encoded_once(
    encoder: Encoder, samples: NDArray[Any], targets: NDArray[Any], selection: Selection
) -> bytes:
    """Return the one payload."""
    (payload,) = encoder.encode(samples, targets, selection)
    return payload


def data(count: int = 600) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    smooth = rng.integers(0, 200, (count, 1, 1, 1)) + rng.integers(0, 50, (count, 1, 6, 6))
    return smooth.astype(np.uint8), rng.integers(0, 4, count)


def test_the_payload_holds_the_selected_samples_in_order() -> None:
    samples, targets = data()
    selection = Selection(np.array([3, 5, 400]), np.array([256, 64, 1], np.uint16))
    encoded = encoded_once(encoder_of(LOSSLESS, (0, 1, 2)), samples, targets, selection)
    decoded = decode_samples(SamplePayload.from_bytes(encoded))
    assert (decoded.samples == samples[[3, 5, 400]]).all()
    assert (decoded.targets == targets[[3, 5, 400]]).all()
    assert decoded.weights.tolist() == [1.0, 4.0, 256.0]


def test_sorting_by_label_keeps_samples_labels_and_weights_together() -> None:
    samples, targets = data()
    positions = np.arange(0, 600, 7)
    inclusion = (1 + positions % 256).astype(np.uint16)
    encoder = encoder_of(LOSSLESS, by_label=True)
    data_bytes = encoded_once(encoder, samples, targets, Selection(positions, inclusion))
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
        encoded = encoded_once(encoder_of(COARSE, by_label=by_label), samples, targets, everything)
        sizes.append(SamplePayload.from_bytes(encoded).section_bytes()["targets"])
    assert sizes[1] < sizes[0] / 4


def test_nothing_selected_takes_no_bytes() -> None:
    samples, targets = data()
    assert encoder_of(COARSE).encode(samples, targets, Selection(np.arange(0))) == ()


def test_the_same_key_gives_the_same_bytes() -> None:
    samples, targets = data(20)
    dithered = CodecOptions(quantizer="dithered")
    one, same, other = (
        encoder_of(dithered, key).encode(samples, targets, Selection(np.arange(20)))
        for key in ((1, 2, 3), (1, 2, 3), (1, 2, 4))
    )
    assert one == same != other


@pytest.mark.parametrize("rule", ["probability", "top"])
@pytest.mark.parametrize("budget", [400, 1000, 2500])
def test_budget_is_filled_and_never_exceeded(rule: str, budget: int) -> None:
    samples, targets = data()
    scores = np.random.default_rng(1).exponential(size=600)
    encoder = encoder_of(COARSE)
    select = make_selector(rule, scores, 0.2, np.random.default_rng(2))
    tried = []

    def encode(selection: Selection) -> tuple[bytes, ...]:
        tried.append(len(selection))
        return encoder.encode(samples, targets, selection)

    encoded = encode_within_budget(select, encode, 600.0, budget)
    assert 0.95 * budget <= encoded.size <= budget
    assert len(tried) <= 4
    (payload,) = encoded.payloads
    assert SamplePayload.from_bytes(payload).count == len(encoded.selection)
    if rule != "probability":
        assert set(encoded.selection.positions) == set(
            np.argsort(-scores)[: len(encoded.selection)]
        )


def test_what_fits_is_sent_whole() -> None:
    samples, targets = data()
    encoder = encoder_of(COARSE)
    select = ranked_selector(np.ones(600), np.random.default_rng(3))
    for budget in (0, 10**6):
        encoded = encode_within_budget(
            select, lambda chosen: encoder.encode(samples, targets, chosen), 600 * 0.5, budget
        )
        assert len(encoded.selection) == 300


def test_a_budget_below_one_sample_is_named() -> None:
    samples, targets = data()
    encoder = encoder_of(COARSE)
    select = ranked_selector(np.ones(600), np.random.default_rng(3))
    encoded = encode_within_budget(
        select, lambda chosen: encoder.encode(samples, targets, chosen), 600, 30
    )
    assert encoded.payloads == () and len(encoded.too_large) == 32
    told = "uplink-budget = 30 bytes is less than one sample takes: the smallest of 32 takes [0-9]+"
    with pytest.raises(CodecError, match=told):
        encoded.check_any_fits(30)


@pytest.mark.parametrize("rule", ["probability", "top"])
def test_a_sample_too_large_by_itself_is_left_out_and_others_are_sent(rule: str) -> None:
    sizes = np.where(np.arange(50) % 10 == 0, 500, 20)
    scores = np.where(sizes > 100, 9.0, 1.0)
    select = make_selector(rule, scores, 0.2, np.random.default_rng(2))

    def encode(selection: Selection) -> tuple[bytes, ...]:
        return (bytes(int(sizes[selection.positions].sum())),)

    encoded = encode_within_budget(select, encode, 30.0, 200)
    assert 0 < encoded.size <= 200 and (sizes[encoded.selection.positions] == 20).all()
    assert encoded.too_large and set(encoded.too_large) <= {0, 10, 20, 30, 40}
    if rule == "top":  # those that are too large come first
        assert encoded.size == 200 and len(encoded.too_large) == 5
    encoded.check_any_fits(200)


def test_samples_that_do_not_fit_together_are_not_too_large_by_themselves() -> None:
    """Draws may let several in, or none."""
    both = Selection(np.array([0, 1]), np.array([256, 256], np.uint16))
    encoded = encode_within_budget(
        lambda _: both, lambda chosen: (bytes(60 * len(chosen)),), 2.0, 100
    )
    assert encoded.selection.positions.tolist() == [0] and not encoded.too_large
    assert encoded.selection.inclusion is not None and encoded.selection.inclusion.tolist() == [256]


@pytest.mark.parametrize("quantizer", ["nearest", "dithered", "stochastic"])
@pytest.mark.parametrize("name", ["dct", "columns", "lossless", "jpeg", "png"])
def test_the_encoder_knows_what_the_server_will_see(name: str, quantizer: str) -> None:
    samples, targets = data(40)
    codec = CodecOptions(name, quantizer=quantizer, step=0.3)
    encoder = encoder_of(codec, (3, 1, 2))
    selection = Selection(np.array([1, 5, 30]), np.array([256, 17, 90], np.uint16))
    encoded = encoded_once(encoder, samples, targets, selection)
    decoded = decode_samples(SamplePayload.from_bytes(encoded))
    known = encoder.reconstruct(samples, targets, selection)
    for name in ("samples", "targets", "weights"):
        np.testing.assert_array_equal(getattr(known, name), getattr(decoded, name))


@pytest.mark.parametrize("limit", [{"samples": 7}, {"values": 7 * 36 + 5}])
@pytest.mark.parametrize("quantizer", ["nearest", "dithered"])
def test_payloads_are_split_at_the_limits_of_the_server(
    quantizer: str, limit: dict[str, int]
) -> None:
    samples, targets = data(40)
    encoder = encoder_of(CodecOptions(quantizer=quantizer, step=0.2), (1, 2**64 - 1, 3), **limit)
    selection = Selection(np.arange(0, 40, 2), np.full(20, 128, np.uint16))
    payloads = [
        SamplePayload.from_bytes(part, DecodeLimits(**limit))
        for part in encoder.encode(samples, targets, selection)
    ]
    assert [payload.count for payload in payloads] == [7, 7, 6]
    parts = [decode_samples(payload) for payload in payloads]
    known = encoder.reconstruct(samples, targets, selection)
    for name in ("samples", "targets", "weights"):
        together = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(getattr(known, name), together)
    if quantizer == "dithered":  # none shares its noise with another
        assert len({payload.key for payload in payloads}) == 3


@pytest.mark.parametrize("quantizer", ["nearest", "dithered"])
def test_payloads_are_halved_until_their_bytes_pay_for_them(quantizer: str) -> None:
    samples, targets = data(40)
    plain = encoder_of(CodecOptions(quantizer=quantizer, step=0.2), (1, 2, 3))
    selection = Selection(np.arange(40))
    (whole,) = plain.encode(samples, targets, selection)
    fewest = 40 * 38 // len(whole)  # numbers for each byte: the whole is just beyond
    encoder = encoder_of(
        CodecOptions(quantizer=quantizer, step=0.2), (1, 2, 3), values_per_byte=fewest
    )
    limits = DecodeLimits(values_per_byte=fewest)
    payloads = [
        SamplePayload.from_bytes(part, limits)
        for part in encoder.encode(samples, targets, selection)
    ]
    assert len(payloads) > 1 and sum(payload.count for payload in payloads) == 40
    with pytest.raises(PayloadError, match=f"the limits are {fewest} numbers a byte"):
        SamplePayload.from_bytes(whole, limits)
    known = encoder.reconstruct(samples, targets, selection)
    together = np.concatenate([decode_samples(payload).samples for payload in payloads])
    np.testing.assert_array_equal(known.samples, together)
    if quantizer == "dithered":
        assert len({payload.key for payload in payloads}) == len(payloads)


def test_the_values_of_a_payload_count_its_targets() -> None:
    """As the server counts them: four for each float of a target, where those are more."""
    samples, targets = np.ones((9, 2), np.float32), np.eye(9, dtype=np.float32)
    reader = Reader(ArraySource(samples, targets, 0), Terms(values=100))
    parts = Encoder(reader, CodecOptions(), (0, 0, 0)).encode(
        samples, targets, Selection(np.arange(9))
    )
    limits = DecodeLimits(values=100)
    assert [SamplePayload.from_bytes(part, limits).count for part in parts] == [2, 2, 2, 2, 1]


def test_a_single_sample_beyond_the_limits_is_named() -> None:
    told = r"a sample \(1, 6, 6\) has 36 values, the server takes up to 30; raise"
    with pytest.raises(CodecError, match=told):
        encoder_of(COARSE, values=30).encode(*data(), Selection(np.arange(3)))


def test_a_thousand_small_images_are_one_payload() -> None:
    samples, targets = fields(1000), np.arange(1000) % 10
    reader = Reader(ArraySource(samples, targets, 10, 0.0, 255.0))
    encoder = Encoder(reader, CodecOptions(), (0, 0, 0), by_label=True)
    assert len(encoder.encode(samples, targets, Selection(np.arange(1000)))) == 1


def test_memory_of_coding_photographs_is_bounded() -> None:
    """Ten bytes a value at most, beside the samples, however many there are."""
    samples = np.concatenate([fields(10, (3, 224, 224))] * 5)
    reader = Reader(ArraySource(samples, np.arange(50) % 2, 2, 0.0, 255.0))
    encoder = Encoder(reader, CodecOptions(), (0, 0, 0))
    everything = Selection(np.arange(50))
    tracemalloc.start()
    payloads = encoder.encode(samples, np.arange(50) % 2, everything)
    encoder.variance_kept(samples)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(payloads) == 3 and peak < 1.15 * 100 * 2**20


@pytest.mark.parametrize(
    ("relative_to", "step", "least", "most"),
    [
        ("spread", 0.05, 0.99, 1.0),
        ("spread", 80.0, 0.0, 0.6),
        ("range", 20.0, 0.0, 0.6),
    ],
)
def test_the_share_of_the_variance_kept_is_measured(
    relative_to: Any, step: float, least: float, most: float
) -> None:
    samples, _ = data(40)
    options = CodecOptions(step=step, relative_to=relative_to)
    assert least <= encoder_of(options).variance_kept(samples) <= most
    assert encoder_of(LOSSLESS).variance_kept(samples) == 1.0
    assert encoder_of(COARSE).variance_kept(samples[:0]) == 1.0
