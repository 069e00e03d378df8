"""What a sample and a reply are known by: their content and the bank's key, and nothing else."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from codec.errors import PayloadError
from codec.identity import (
    FINGERPRINT_BYTES,
    RECEIPT_BYTES,
    fingerprints,
    read_tags,
    receipt,
    tags,
)

BANK = bytes(range(8))
IMAGES = np.arange(3 * 2 * 2, dtype=np.uint8).reshape(3, 1, 2, 2)
LABELS = np.arange(3)


def known_by(
    samples: NDArray[Any] = IMAGES, targets: NDArray[Any] = LABELS, bank: bytes = BANK
) -> list[int]:
    return fingerprints(samples, targets, bank).tolist()


def test_fingerprints_are_the_same_for_ever() -> None:
    """They lie on devices and in banks: another digest would send everything again."""
    assert known_by() == [1033329966435007800, 13021300228897004802, 17749223581372310289]
    assert receipt((b"one", b"two")).hex() == "4838c1df7fd3d396"


def test_a_sample_is_known_wherever_it_stands() -> None:
    order = np.array([2, 0, 1])
    assert known_by(IMAGES[order], LABELS[order]) == [known_by()[k] for k in order]
    strided = np.moveaxis(np.moveaxis(IMAGES, 1, -1).copy(), -1, 1)
    assert known_by(strided) == known_by()


@pytest.mark.parametrize(
    "other",
    [
        {"bank": b""},
        {"bank": BANK[::-1]},
        {"targets": LABELS + 1},
        {"targets": LABELS.astype(np.float32)},
        {"targets": LABELS.reshape(3, 1).astype(np.float32)},
        {"samples": IMAGES + np.uint8(1)},
        {"samples": IMAGES.view(np.int8)},
        {"samples": IMAGES.reshape(3, 2, 1, 2)},
        {"samples": IMAGES.reshape(3, 4)},
    ],
)
def test_whatever_else_it_is_it_is_another(other: dict[str, Any]) -> None:
    assert not set(known_by()) & set(known_by(**other))


def test_different_samples_have_different_fingerprints_and_evenly_spread_tags() -> None:
    """Two bytes tell 65,536 apart: of 20,000 samples, pairs meet as often as by chance."""
    count = 20_000
    samples = np.arange(count, dtype=np.int32).reshape(count, 1)
    found = fingerprints(samples, np.zeros(count, np.int64), BANK)
    assert len(np.unique(found)) == count
    short, _ = read_tags(tags(found, 2), count)
    _, numbers = np.unique(short, return_counts=True)
    pairs = int((numbers * (numbers - 1) // 2).sum())
    expected = count * (count - 1) / 2 / 2**16
    assert abs(pairs - expected) < 5 * np.sqrt(expected)


@given(arrays(np.uint64, st.integers(1, 40)), st.integers(1, FINGERPRINT_BYTES))
def test_tags_are_the_first_bytes(found: NDArray[np.uint64], size: int) -> None:
    data = tags(found, size)
    assert len(data) == size * len(found)
    read, length = read_tags(data, len(found))
    assert length == size
    assert (read == found & np.uint64(2 ** (8 * size) - 1)).all()


def test_no_tags_travel_where_none_are_asked_for() -> None:
    assert tags(np.arange(5, dtype=np.uint64), 0) == b""
    read, size = read_tags(b"", 5)
    assert (len(read), size) == (5, 0)


@pytest.mark.parametrize(("data", "count"), [(b"abc", 2), (b"a", 0), (bytes(18), 2), (b"a", 2)])
def test_tags_of_another_length_are_refused(data: bytes, count: int) -> None:
    with pytest.raises(PayloadError, match=f"{len(data)} bytes of fingerprints for"):
        read_tags(data, count)


@given(st.lists(st.binary(max_size=12), min_size=1, max_size=4), st.data())
def test_a_receipt_is_of_the_payloads_one_by_one(
    payloads: list[bytes], data: st.DataObject
) -> None:
    made = receipt(payloads)
    assert len(made) == RECEIPT_BYTES and receipt(tuple(payloads)) == made
    assert receipt([*payloads, b""]) != made
    cut = data.draw(st.integers(0, len(payloads[0])))
    assert receipt([payloads[0][:cut], payloads[0][cut:], *payloads[1:]]) != made
