"""What a sample and a reply are known by: keyed digests of their content, never a position."""

import hashlib
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.errors import PayloadError

FINGERPRINT_BYTES = 8
RECEIPT_BYTES = 8
BANK_BYTES = 8  # of a bank's id, which keys the fingerprints


def fingerprints(
    samples: NDArray[Any], targets: NDArray[Any], bank: bytes = b""
) -> NDArray[np.uint64]:
    """Return what samples are known by: a digest of values and target, keyed by the bank.

    Equal samples with equal targets have equal fingerprints, on whatever device and at whatever
    place of a data set. Of a million different samples two have the same one with a probability
    of 3e-8.

    Parameters
    ----------
    samples : (N, *shape) array
        As they are coded.
    targets : (N,) or (N, t) array
    bank : bytes
        Id of the bank, at most 64 bytes; other banks know a sample by other fingerprints.
    """
    kind = f"{samples.dtype.str}{samples.shape[1:]}{targets.dtype.str}".encode()
    start = hashlib.blake2b(kind, digest_size=FINGERPRINT_BYTES, key=bank)
    found = np.empty(len(samples), np.uint64)
    for row, (sample, target) in enumerate(zip(samples, targets, strict=True)):
        digest = start.copy()
        digest.update(np.ascontiguousarray(sample).tobytes())
        digest.update(np.asarray(target).tobytes())
        found[row] = int.from_bytes(digest.digest(), "little")
    return found


def tags(found: NDArray[np.uint64], size: int) -> bytes:
    """Return the first `size` bytes of each fingerprint, as they travel."""
    rows = found.astype("<u8").view(np.uint8).reshape(-1, FINGERPRINT_BYTES)
    return rows[:, :size].tobytes()


def read_tags(data: bytes, count: int) -> tuple[NDArray[np.uint64], int]:
    """Return the tags of `count` samples, and the bytes of each; none have 0 bytes.

    Raises
    ------
    PayloadError
        If the bytes are not as many for each sample, or more than a fingerprint has.
    """
    if not data or not count:
        if data:
            raise PayloadError(f"{len(data)} bytes of fingerprints for no sample")
        return np.zeros(count, np.uint64), 0
    size, rest = divmod(len(data), count)
    if rest or not 1 <= size <= FINGERPRINT_BYTES:
        raise PayloadError(
            f"{len(data)} bytes of fingerprints for {count} samples; legal: 1 to "
            f"{FINGERPRINT_BYTES} for each"
        )
    rows = np.zeros((count, FINGERPRINT_BYTES), np.uint8)
    rows[:, :size] = np.frombuffer(data, np.uint8).reshape(count, size)
    return rows.view("<u8").reshape(count).astype(np.uint64), size


def receipt(payloads: Sequence[bytes]) -> bytes:
    """Return what a reply's payloads are known by, (8,) bytes; both ends compute it."""
    digest = hashlib.blake2b(digest_size=RECEIPT_BYTES)
    for payload in payloads:
        digest.update(struct.pack("<Q", len(payload)) + payload)
    return digest.digest()
