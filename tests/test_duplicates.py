"""A sample that comes twice is held once, however it is coded; what is merely alike stays."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from bank_files import SHAPE, add, drawn, payload, same, tags_of
from numpy.typing import NDArray

from codec import (
    CodecOptions,
    DecodedSamples,
    PayloadError,
    SamplePayload,
    SampleSpec,
    decode_samples,
    encode_samples,
    variance_kept,
)
from codec.identity import fingerprints, tags
from fl_app.data import load
from sim.data_kinds.tasks import wine_task
from strategies.sample_bank import Added, Origin, SampleBank
from strategies.sample_bank.duplicates import (
    Coded,
    Loss,
    TagIndex,
    are_one,
    may_be_one,
    sketches_of,
)

Pair = tuple[NDArray[np.generic], NDArray[np.int64]]
LOSSLESS, DEFAULT = CodecOptions("lossless"), CodecOptions()
CODINGS = (
    LOSSLESS, DEFAULT, CodecOptions("jpeg", quality=30), CodecOptions(quantizer="dithered"),
)  # fmt: skip


@pytest.fixture(scope="module")
def digits() -> Pair:
    images = load("mnist5k", "train")
    chosen = np.random.default_rng(0).permutation(len(images.labels))[:300]
    return images.samples[chosen], images.labels[chosen]


@pytest.fixture(scope="module")
def table() -> Pair:
    wines = wine_task(0, 0, standardized=False)
    return wines.samples, wines.targets


def coded(data: Pair, index: Iterable[int], codec: CodecOptions, key: int = 0) -> SamplePayload:
    samples, targets = data
    rows = np.fromiter(index, np.int64)
    low, high = (0, 255) if samples.dtype == np.uint8 else (samples.min(), samples.max())
    spec = SampleSpec(
        samples.shape[1:], str(samples.dtype), float(low), float(high), 10, codec=codec
    )
    return encode_samples(samples[rows], targets[rows], spec, key=(0, key, 0))


def send(
    bank: SampleBank,
    data: Pair,
    index: Iterable[int],
    codec: CodecOptions = LOSSLESS,
    size: int = 2,
    key: int = 0,
) -> Added:
    """Send samples as a client would, with tags of their originals."""
    rows = np.fromiter(index, np.int64)
    made = coded(data, rows, codec, key)
    decoded = decode_samples(made)
    marks = tags(fingerprints(data[0][rows], data[1][rows], bank.id), size)
    kept = 1.0 if codec == LOSSLESS else variance_kept(data[0][rows], decoded.samples)
    receipt = f"{rows.tolist()}{codec}{key}".encode()
    origin = Origin(receipt=receipt, fingerprints=marks, variance_kept=kept)
    return bank.add_reply([(made, decoded)], origin)


@pytest.mark.parametrize(("kind", "size"), [("digits", 2), ("table", 2), ("table", 8)])
def test_what_comes_again_in_another_code_is_dropped(
    kind: str, size: int, request: pytest.FixtureRequest
) -> None:
    data: Pair = request.getfixturevalue(kind)
    codings = CODINGS if kind == "digits" else [c for c in CODINGS if c.codec != "jpeg"]
    rng, half = np.random.default_rng(1), min(100, len(data[0]) // 2)
    for first in codings:
        bank = SampleBank()
        for start in (0, half):
            assert send(bank, data, range(start, start + half), first, size).samples == half
        for key, second in enumerate(codings, start=1):
            parts = np.split(rng.permutation(2 * half), 2)
            again = [send(bank, data, part, second, size, key) for part in parts]
            assert sum(one.duplicates for one in again) >= 2 * half - (0 if size > 5 else 2)


def test_what_shares_tag_and_class_by_chance_stays(digits: Pair, table: Pair) -> None:
    rng = np.random.default_rng(2)
    for data, most in ((digits, 0.03), (table, 0.02)):
        samples, targets = data
        for codec in (LOSSLESS, DEFAULT):
            made = coded(data, range(len(samples)), codec)
            decoded = decode_samples(made)
            kept = 1.0 if codec == LOSSLESS else variance_kept(samples, decoded.samples)
            one = Coded(decoded.samples, Loss.of(made.spec, kept))
            pairs = rng.integers(0, len(samples), (4000, 2))
            alike = targets[pairs[:, 0]] == targets[pairs[:, 1]]
            pairs = pairs[alike & (pairs[:, 0] != pairs[:, 1])]
            taken_for_one = np.mean([are_one(one, a, one, b) for a, b in pairs.tolist()])
            assert taken_for_one <= (0 if codec == LOSSLESS else most)


@pytest.mark.parametrize("codecs", [(DEFAULT, DEFAULT), (LOSSLESS, CODINGS[3])])
def test_sketches_tell_others_apart_and_no_duplicate(
    digits: Pair, codecs: tuple[CodecOptions, CodecOptions]
) -> None:
    samples, _ = digits
    parts = []
    for key, codec in enumerate(codecs):
        made = coded(digits, range(300), codec, key)
        decoded = decode_samples(made)
        kept = 1.0 if codec == LOSSLESS else variance_kept(samples, decoded.samples)
        parts.append(Coded(decoded.samples, Loss.of(made.spec, kept)))
    one, other = parts
    mine, theirs = sketches_of(one), sketches_of(other)
    assert all(may_be_one(one, mine[k], theirs[k], other.loss) for k in range(300))
    pairs = np.random.default_rng(6).integers(0, 300, (2000, 2))
    chance = [may_be_one(one, mine[a], theirs[b], other.loss) for a, b in pairs.tolist() if a != b]
    assert np.mean(chance) < (0.15 if codecs[0] == DEFAULT else 0.4)
    assert may_be_one(one, np.full(8, np.inf, "f2"), theirs[0], other.loss)  # no number, no verdict


def test_another_class_or_no_tags_is_no_duplicate(digits: Pair) -> None:
    samples, targets = digits
    bank = SampleBank()
    assert send(bank, digits, range(50)).samples == 50
    # The tags of the first samples, but other targets.
    made = coded((samples, (targets + 1) % 10), range(50), LOSSLESS)
    marks = tags(fingerprints(samples[:50], targets[:50]), 8)
    decoded = decode_samples(made)
    origin = Origin(receipt=b"other", fingerprints=marks)
    assert bank.add_reply([(made, decoded)], origin).samples == 50
    assert send(bank, digits, range(50), size=0, key=3).samples == 50
    assert len(bank) == 150


def test_duplicates_within_a_reply_are_dropped(digits: Pair) -> None:
    bank = SampleBank()
    done = send(bank, digits, [0, 1, 2, 1, 0, 0], DEFAULT)
    assert (done.samples, done.duplicates) == (3, 3) and len(bank) == 3
    parts = [coded(digits, part, DEFAULT) for part in ([3, 4], [4, 3, 5])]
    samples, targets = digits
    marks = tags(fingerprints(samples[[3, 4, 4, 3, 5]], targets[[3, 4, 4, 3, 5]]), 2)
    both = [(one, decode_samples(one)) for one in parts]
    origin = Origin(receipt=b"two", fingerprints=marks, variance_kept=0.9)
    assert bank.add_reply(both, origin) == Added(3, 2, known=False)


def test_float_targets_and_tokens_are_compared_exactly() -> None:
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, 50, (20, 12)).astype(np.int32)
    targets = rng.random((20, 2)).astype(np.float32)
    spec = SampleSpec((12,), "int32", 0, 50, target_size=2)
    made = encode_samples(tokens, targets, spec)
    decoded = decode_samples(made)
    bank = SampleBank()
    marks = tags(fingerprints(tokens, targets), 2)
    assert bank.add_reply([(made, decoded)], Origin(receipt=b"1", fingerprints=marks)).samples == 20
    again = bank.add_reply([(made, decoded)], Origin(receipt=b"2", fingerprints=marks))
    assert (again.samples, again.duplicates) == (0, 20)
    altered = decoded.samples.copy()
    altered[:, 0] += 1
    other = DecodedSamples(altered, decoded.targets, decoded.weights, {})
    assert bank.add_reply([(made, other)], Origin(receipt=b"3", fingerprints=marks)).samples == 20


def test_tags_that_do_not_fit_are_refused_and_leave_nothing() -> None:
    bank = SampleBank()
    one = payload(0)
    with pytest.raises(PayloadError, match="7 bytes of fingerprints for 6 samples"):
        add(bank, [one], fingerprints=bytes(7))
    assert len(bank) == 0 and bank.replies == 0


@pytest.mark.parametrize("limit", [100, 300, 1 << 20])
def test_a_bank_with_duplicates_is_the_same_after_reopening(tmp_path: Path, limit: int) -> None:
    """Whatever of it is in memory, and wherever it is closed."""
    paths = [tmp_path / "one", tmp_path / "two"]
    ours, theirs = (SampleBank(limit, path=path) for path in paths)
    generators = [np.random.default_rng(0) for _ in paths]
    rng = np.random.default_rng(4)
    samples = rng.integers(0, 256, (60, *SHAPE), dtype=np.uint8)
    data = samples, rng.integers(0, 10, 60)
    sent: list[int] = []
    for number in range(8):
        index = rng.integers(0, 60, 15)
        sent += index.tolist()
        results = []
        for bank in (ours, theirs):
            made = coded(data, index, CodecOptions(step=0.1) if number % 2 else LOSSLESS)
            marks = tags(fingerprints(data[0][index], data[1][index]), 2)
            origin = Origin(receipt=bytes([number]), fingerprints=marks, variance_kept=0.97)
            results.append(bank.add_reply([(made, decode_samples(made))], origin))
        assert results[0] == results[1]
        assert same(drawn(ours, generators[0], 4, 5), drawn(theirs, generators[1], 4, 5))
        position = theirs.position()
        theirs.close()
        theirs = SampleBank(limit, path=paths[1])
        theirs.restore(position)
        assert len(ours) == len(theirs)
    assert len(ours) == len(set(sent))
    ours.close()
    theirs.close()


def test_a_reply_that_waits_is_compared_when_it_is_admitted(tmp_path: Path) -> None:
    """Uninterrupted, client 1 comes first, and of client 2 the same samples are dropped."""
    bank = SampleBank(path=tmp_path / "bank")
    one, two = payload(1), payload(1, 6, CodecOptions(step=0.1))
    add(bank, [two], client=2, fingerprints=tags_of(one, 8))
    bank.close()
    bank = SampleBank(path=tmp_path / "bank")
    (waiting,) = bank.hold_back(0)
    assert add(bank, [one], client=1, fingerprints=tags_of(one, 8)) == Added(6, 0, known=False)
    assert bank.admit(waiting.receipt) == Added(0, 6, known=False)
    bank.close()
    with SampleBank(path=tmp_path / "bank") as bank:
        assert (len(bank), bank.replies) == (6, 2)
        assert len(drawn(bank, np.random.default_rng(0), 6, 2)) == 2


@pytest.mark.parametrize("sizes", [(2, 2), (2, 8), (8, 2), (1, 3), (5, 7), (8, 8)])
def test_the_index_finds_what_agrees_in_the_bytes_that_both_have(sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(5)
    index, count = TagIndex(), 3000
    known = rng.integers(0, 2**64, count, dtype=np.uint64)
    known[10:20] = known[:10]
    labels = rng.integers(0, 3, count).astype(np.uint16)
    for start in range(0, count, 100):
        part = slice(start, start + 100)
        index.add(tags(known[part], sizes[0]), labels[part], start, np.ones(100, np.bool_))
    asked = known[:200]
    common = min(sizes)
    heads = [int(tag) & ((1 << 8 * common) - 1) for tag in known.tolist()]
    expected = [
        (row, place, common)
        for row in range(200)
        for place in range(count)
        if heads[row] == heads[place] and labels[row] == labels[place]
    ]
    assert list(index.find(tags(asked, sizes[1]), labels[:200])) == expected
    assert len(index._runs[sizes[0]]) < 12
