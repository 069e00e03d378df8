"""What of a source is sent, and what is a copy: rows repeat, keys are unique, noise has places."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from device_world import Album
from flwr.app import RecordDict
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from requested_client import answer, context, message

from clients import ArraySource
from clients.inventory import item_keys, replay_quota
from codec import CodecError, CodecOptions, SamplePayload, decode_samples
from codec.identity import receipt, tags

LOSSLESS = CodecOptions("lossless").to_bytes()


@dataclass
class Sender:
    """A client that is asked until nothing is left.

    Attributes
    ----------
    lost : sequence of int
        Replies that do not arrive, by their number.
    rows : Counter
        Samples and targets that arrived.
    tags : list of bytes
        Of those.
    """

    lost: Sequence[int] = ()
    size: int = 8
    rows: Counter[bytes] = field(default_factory=Counter)
    tags: list[bytes] = field(default_factory=list)
    skipped: str = ""
    notes: list[str] = field(default_factory=list)
    state: RecordDict = field(default_factory=RecordDict)
    acknowledged: bytes = b""
    asked: int = 0

    def finish(self, source: Any, **options: Any) -> None:
        left = 1
        while left:
            ctx = context()
            ctx.state = self.state
            msg = message(
                mode="replay",
                server_round=self.asked,
                acknowledged=self.acknowledged,
                codec=LOSSLESS,
                identity_bytes=self.size,
            )
            reply = answer(msg, ctx, source, **options)
            left, self.asked = reply["remaining"], self.asked + 1
            if self.asked - 1 in self.lost:
                left = 1
                continue
            self.acknowledged = receipt((reply["samples"],))
            self.skipped += reply.get("skipped", "")
            self.notes += reply.get("notes", ())
            if reply["samples"]:
                found = decode_samples(SamplePayload.from_bytes(reply["samples"]))
                rows = zip(found.samples, found.targets, strict=True)
                self.rows.update(row.tobytes() + str(target).encode() for row, target in rows)
                data, size = reply.get("fingerprints", b""), self.size
                self.tags += [data[k : k + size] for k in range(0, len(data), max(size, 1))]


def table(numbers: Sequence[int]) -> ArraySource:
    columns = np.array(numbers, np.float32)[:, None] + np.zeros(3, np.float32)
    return ArraySource(columns, np.array(numbers) % 2, 2)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.lists(st.integers(0, 3)))
def test_all_rows_of_a_table_are_sent_as_often_as_they_are_there(
    numbers: list[int], lost: list[int]
) -> None:
    sender = Sender(lost=lost)
    sender.finish(table(numbers))
    assert sorted(sender.rows.values()) == sorted(Counter(numbers).values())
    assert len(set(sender.tags)) == len(sender.tags) == len(numbers) and not sender.skipped
    sender.finish(table(numbers[::-1]))
    assert sender.rows.total() == len(numbers)
    sender.finish(table([*numbers, numbers[0]]))
    assert sender.rows.total() == len(numbers) + 1


def test_repetitions_have_tags_of_their_own_and_the_first_is_the_content_s() -> None:
    sender = Sender(size=2)
    sender.finish(table([5] * 300))
    assert len(set(sender.tags)) == 300
    one = Sender(size=2)
    one.finish(table([5]))
    assert one.tags[0] in sender.tags


def test_a_table_of_few_different_rows_takes_no_longer() -> None:
    sender = Sender(size=0)
    ctx = context()
    msg = message(mode="replay", codec=LOSSLESS, samples_per_round=0)
    reply = answer(msg, ctx, table([k % 2 for k in range(20_000)]))
    assert (reply["num-sent"], reply["remaining"]) == (20_000, 0) and not sender.tags


def test_equal_images_under_different_labels_are_different() -> None:
    images = np.full((4, 1, 8, 8), 7, np.uint8)
    sender = Sender()
    sender.finish(ArraySource(images, np.array([0, 1, 0, 1]), 2, 0.0, 255.0))
    assert len(sender.rows) == sender.rows.total() == 2
    assert sender.skipped == '{"duplicate": 2}'


class Noisy(Album):
    """Images with noise that is another one each time, from the first time on or later."""

    def __init__(self, numbers: list[int], quiet: int = 0) -> None:
        super().__init__(numbers)
        self.quiet, self.rng = quiet, np.random.default_rng(0)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        pixels, label = super().__getitem__(index)
        if self.reads.total() > self.quiet:
            pixels[0, 2:] = self.rng.integers(0, 256, (2, 4))
        return pixels, label


@pytest.mark.parametrize("quiet", [0, 25, 40])
def test_what_is_never_the_same_is_known_by_its_place(quiet: int) -> None:
    """Each item is sent once, in whatever version, and it is told."""
    source, sender = Noisy(list(range(30)), quiet), Sender()
    sender.finish(source, classes=3)
    assert sender.rows.total() == 30 and len(set(sender.tags)) == 30
    assert len({row[:8] for row in sender.rows}) == 30  # the two pixels that hold the number
    assert len(sender.notes) == 1 and "random transform" in sender.notes[0]
    sender.finish(source, classes=3)
    assert sender.rows.total() == 30


def test_tags_of_noise_are_the_device_s_own() -> None:
    def first_tags(partition: int) -> bytes:
        msg = message(mode="replay", codec=LOSSLESS, identity_bytes=8, samples_per_round=0)
        reply = answer(msg, context(partition), Noisy(list(range(8))), classes=3)
        found: bytes = reply["fingerprints"]
        return found

    assert not {first_tags(1)[k : k + 8] for k in range(0, 64, 8)} & {
        first_tags(2)[k : k + 8] for k in range(0, 64, 8)
    }


@dataclass
class Keys:
    """A source of which only the keys count."""

    keys: Any

    def item_keys(self, _: NDArray[np.int64]) -> Any:
        return self.keys


def test_keys_are_text_or_bytes() -> None:
    found = item_keys(Keys(["a", b"b"]), 2, b"")
    again = item_keys(Keys([b"b", "a"]), 2, b"")
    assert found is not None and again is not None
    assert found.tolist() == again.tolist()[::-1]
    assert item_keys(Keys(["a", b"b"]), 2, b"8 bytes.").tolist() != found.tolist()  # type: ignore[union-attr]
    assert item_keys(Keys(None), 2, b"") is None and item_keys(object(), 2, b"") is None


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (["a"], "item_keys gives 1 keys for 2 items; legal: one each"),
        (["a", "a"], "item_keys gives 'a' to two items; each needs a key of its own"),
        (["a", 7], "item_keys gives 7, int; legal: str or bytes"),
    ],
)
def test_keys_that_tell_nothing_apart_are_refused(keys: list[Any], told: str) -> None:
    with pytest.raises(CodecError, match=told):
        item_keys(Keys(keys), 2, b"")


@pytest.mark.parametrize(
    ("length", "rate", "quota"), [(10, 1.0, 10), (10, 0.25, 2), (3, 0.1, 1), (0, 0.5, 0)]
)
def test_the_share_that_is_ever_sent(length: int, rate: float, quota: int) -> None:
    assert replay_quota(length, rate) == quota


def test_no_tag_tells_more_than_was_asked_for() -> None:
    images = ArraySource(np.arange(64, dtype=np.uint8).reshape(4, 1, 4, 4), np.zeros(4, int), 2)
    wide, narrow = Sender(size=8), Sender(size=3)
    for sender in (wide, narrow):
        sender.finish(replace(images, low=0.0, high=255.0))
    assert {tag[:3] for tag in wide.tags} == set(narrow.tags)
    assert tags(np.zeros(2, np.uint64), 3) == bytes(6)
