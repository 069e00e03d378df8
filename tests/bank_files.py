"""Payloads and replies for tests of banks."""

from collections.abc import Sequence

import numpy as np
import torch

from codec import CodecOptions, SamplePayload, SampleSpec, decode_samples, encode_samples
from codec.identity import fingerprints, receipt, tags
from codec.samples.spec import VERSION
from strategies.sample_bank import Added, Origin, SampleBank

SHAPE = (1, 4, 4)
LOSSLESS = CodecOptions("lossless")
Drawn = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def payload(
    seed: int, count: int = 6, codec: CodecOptions = LOSSLESS, version: int = VERSION
) -> SamplePayload:
    """Return a payload of random 8-bit samples."""
    rng = np.random.default_rng(seed)
    samples = rng.integers(0, 256, (count, *SHAPE), dtype=np.uint8)
    spec = SampleSpec(SHAPE, "uint8", 0, 255, classes=10, codec=codec, version=version)
    return encode_samples(samples, rng.integers(0, 10, count), spec, key=(0, 0, seed))


def floats(seed: int, count: int = 6) -> SamplePayload:
    """Return a payload of random floats of the same shape."""
    rng = np.random.default_rng(seed)
    spec = SampleSpec(SHAPE, "float32", 0, 1, classes=10, codec=LOSSLESS)
    return encode_samples(rng.random((count, *SHAPE), "f4"), rng.integers(0, 10, count), spec)


def receipt_of(*payloads: SamplePayload) -> bytes:
    """Return the receipt of a reply."""
    return receipt([one.to_bytes() for one in payloads])


def add(bank: SampleBank, payloads: Sequence[SamplePayload], **origin: object) -> Added:
    """Add a reply."""
    known = Origin(receipt=receipt_of(*payloads), **origin)  # type: ignore[arg-type]
    return bank.add_reply([(one, decode_samples(one)) for one in payloads], known)


def tags_of(one: SamplePayload, size: int, bank: SampleBank | None = None) -> bytes:
    """Return the tags of a lossless payload's samples."""
    decoded = decode_samples(one)
    samples = decoded.samples.astype(one.spec.dtype)
    return tags(fingerprints(samples, decoded.targets, b"" if bank is None else bank.id), size)


def drawn(bank: SampleBank, generator: np.random.Generator, size: int, steps: int) -> Drawn:
    """Return minibatches."""
    return list(bank.minibatches(size, steps, generator))


def same(one: Drawn, other: Drawn) -> bool:
    """Whether minibatches are equal, bit for bit."""
    return len(one) == len(other) and all(
        torch.equal(x, y)
        for a, b in zip(one, other, strict=True)
        for x, y in zip(a, b, strict=True)
    )
