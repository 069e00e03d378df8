"""The bank gives back what was sent, every sample once an epoch, within its memory."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from codec import CodecOptions, PayloadError, SamplePayload, SampleSpec, encode_samples
from strategies.sample_bank import SampleBank

SHAPE = (1, 4, 4)
LOSSLESS = CodecOptions("lossless")


def _payload(
    count: int,
    start: int = 0,
    codec: CodecOptions = LOSSLESS,
    inclusion: int | None = None,
) -> SamplePayload:
    """Payload whose k-th sample has the constant value and the label ``start + k``."""
    values = np.arange(start, start + count)
    samples = np.broadcast_to(values[:, None, None, None], (count, *SHAPE)).astype(np.uint8)
    spec = SampleSpec(SHAPE, "uint8", 0, 255, classes=200, codec=codec)
    kept = None if inclusion is None else np.full(count, inclusion, np.uint16)
    return encode_samples(samples.copy(), values, spec, key=(0, 0, start), inclusion=kept)


def _drawn(bank: SampleBank, size: int, steps: int, seed: int = 0) -> list[NDArray[np.int64]]:
    batches = []
    for samples, targets, weights in bank.minibatches(size, steps, np.random.default_rng(seed)):
        assert samples.dtype == torch.float32 and weights.shape == targets.shape
        # The value of a sample is its label: nothing got mixed up on the way.
        torch.testing.assert_close(samples[:, 0, 0, 0] * 255, targets.float())
        batches.append(targets.numpy())
    return batches


@pytest.mark.parametrize("memory_limit", [1 << 20, 200])
def test_an_epoch_draws_every_sample_once(memory_limit: int) -> None:
    bank = SampleBank(memory_limit)
    for start in range(0, 40, 5):
        assert bank.add_payload(_payload(5, start).to_bytes()) == 5
    assert len(bank) == 40
    batches = _drawn(bank, size=8, steps=10)
    for epoch in (batches[:5], batches[5:]):
        assert sorted(np.concatenate(epoch)) == list(range(40))
    assert not np.array_equal(batches[0], batches[5])


@pytest.mark.parametrize("memory_limit", [1 << 20, 200])
def test_minibatches_depend_on_the_generator_alone(memory_limit: int) -> None:
    runs = []
    for _ in range(2):
        bank = SampleBank(memory_limit)
        for start in range(0, 30, 10):
            bank.add_payload(_payload(10, start))
        runs.append(np.concatenate(_drawn(bank, 7, 12, seed=3)))
    assert np.array_equal(runs[0], runs[1])


def test_an_incomplete_batch_is_left_out_and_a_small_bank_drawn_whole() -> None:
    bank = SampleBank()
    bank.add_payload(_payload(10))
    for batch in _drawn(bank, size=4, steps=6):
        assert len(set(batch)) == 4
    for batch in _drawn(bank, size=64, steps=3):
        assert sorted(batch) == list(range(10))


@pytest.mark.parametrize("memory_limit", [1 << 20, 100])
def test_new_samples_join_the_running_epoch(memory_limit: int) -> None:
    bank = SampleBank(memory_limit)
    bank.add_payload(_payload(4, 0))
    bank.add_payload(_payload(4, 4))
    first = np.concatenate(_drawn(bank, size=2, steps=2))
    bank.add_payload(_payload(4, 8))
    rest = np.concatenate(_drawn(bank, size=2, steps=4))
    assert sorted([*first, *rest]) == list(range(12))


def test_memory_stays_within_its_limit() -> None:
    limit = 3 * 5 * 16  # three payloads of five uint8 samples
    bank = SampleBank(limit)
    for number, start in enumerate(range(0, 50, 5), start=1):
        bank.add_payload(_payload(5, start))
        _drawn(bank, size=4, steps=3)
        assert bank.resident_bytes == min(number * 5 * 16, limit)
    assert bank.nbytes == sum(len(_payload(5, s).to_bytes()) for s in range(0, 50, 5))


@pytest.mark.parametrize(
    ("codec", "dtype"),
    [
        (LOSSLESS, np.uint8),
        (CodecOptions(quantizer="nearest"), np.uint8),
        (CodecOptions(quantizer="dithered"), np.float32),
        (CodecOptions("png"), np.uint8),
        (CodecOptions("jpeg"), np.uint8),
    ],
)
def test_memory_keeps_unbiased_samples_as_floats(codec: CodecOptions, dtype: type) -> None:
    bank = SampleBank()
    bank.add_payload(_payload(6, codec=codec))
    assert bank.resident_bytes == 6 * 16 * np.dtype(dtype).itemsize


def test_importance_weights_are_carried() -> None:
    bank = SampleBank()
    bank.add_payload(_payload(6, inclusion=64))
    _, _, weights = next(bank.minibatches(6, 1, np.random.default_rng(0)))
    assert torch.equal(weights, torch.full((6,), 4.0))


def test_arrays_run_the_same_loop() -> None:
    coded, raw = SampleBank(), SampleBank()
    coded.add_payload(_payload(30))
    values = np.arange(30)
    samples = np.broadcast_to(values[:, None, None, None], (30, *SHAPE)).astype(np.uint8)
    raw.add_arrays(samples, values, low=0, high=255)
    for one, other in zip(
        coded.minibatches(8, 9, np.random.default_rng(1)),
        raw.minibatches(8, 9, np.random.default_rng(1)),
        strict=True,
    ):
        for left, right in zip(one, other, strict=True):
            assert torch.equal(left, right)


def test_float_targets_and_value_range() -> None:
    bank = SampleBank()
    samples = np.array([[-2.0, 2.0], [0.0, 1.0]], np.float32)
    targets = np.array([[0.5], [1.5]], np.float32)
    bank.add_arrays(samples, targets, low=-2, high=2)
    drawn, values, _ = next(bank.minibatches(2, 1, np.random.default_rng(0)))
    order = values[:, 0].argsort()
    assert torch.equal(drawn[order], torch.tensor([[0.0, 1.0], [0.5, 0.75]]))
    assert values.dtype == torch.float32
    assert np.array_equal(samples[0], [-2.0, 2.0])


def test_what_does_not_fit_is_refused() -> None:
    bank = SampleBank()
    with pytest.raises(ValueError, match="empty"):
        next(bank.minibatches(1, 1, np.random.default_rng(0)))
    bank.add_payload(_payload(3))
    with pytest.raises(ValueError, match="do not fit"):
        bank.add_arrays(np.zeros((2, 5), np.float32), np.zeros(2, np.int64))
    with pytest.raises(PayloadError):
        bank.add_payload(_payload(3).to_bytes()[:-1])
    assert len(bank) == 3
    with pytest.raises(ValueError, match=r"^batch_size = 0 must be >= 1$"):
        next(bank.minibatches(0, 1, np.random.default_rng(0)))
    with pytest.raises(ValueError, match=r"^memory_limit = 0 must be >= 1$"):
        SampleBank(0)
