"""What a device remembers: packed and read again, settled, joined, matched with a source."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from clients.memory import Items, Memory, pack_flags, unpack_flags

LAST, OTHER = b"receipt3", b"receipt2"


def prints(*numbers: int) -> NDArray[np.uint64]:
    return np.array(numbers, np.uint64)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Items):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in fields(Items))
    return bool(np.array_equal(one, other)) if isinstance(one, np.ndarray) else bool(one == other)


@given(st.lists(st.integers(0, 9), max_size=30), st.booleans(), st.data())
def test_a_memory_is_what_was_packed(known: list[int], by_key: bool, data: st.DataObject) -> None:
    size = len(known)
    flags = [np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)), bool)
             for _ in range(2)]  # fmt: skip
    keys = np.arange(size, dtype=np.uint64) if by_key else None
    memory = Memory(
        delivered=np.unique(np.array(data.draw(st.lists(st.integers(1, 15))), np.uint64)),
        pending=prints(3, 20),
        receipt=LAST,
        skipped={"damaged": 3},
        refused=prints(7),
        items=Items(prints(*known), flags[0], flags[1], keys),
        scope=b"scope",
        salt=b"salt",
        length=size,
        told=4,
        changed=by_key,
        sequence=12,
    )
    entries: dict[str, Any] = memory.to_entries()
    again = Memory.from_entries(ConfigRecord(entries))
    for field in fields(Memory):
        assert same(getattr(again, field.name), getattr(memory, field.name)), field.name


@pytest.mark.parametrize(("before", "after"), [(10, 17), (17, 10), (10, 0), (0, 10)])
def test_flags_of_more_or_less_items(before: int, after: int) -> None:
    flags = np.arange(before) % 3 == 0
    again = unpack_flags(pack_flags(flags), after)
    common = min(before, after)
    assert len(again) == after and (again[:common] == flags[:common]).all()
    assert not again[common:].any()


@pytest.mark.parametrize("acknowledged", [LAST, None])
def test_what_arrived_is_delivered(acknowledged: bytes | None) -> None:
    sent = Memory(prints(1), prints(4, 2), LAST, {"damaged": 1})
    after = sent.settle(acknowledged)
    assert sent.unsettled == LAST and after.unsettled == b""
    assert after.delivered.tolist() == [1, 2, 4] and not after.skipped


@pytest.mark.parametrize("acknowledged", [b"", OTHER])
def test_what_was_lost_was_never_sent(acknowledged: bytes) -> None:
    after = Memory(prints(1), prints(4, 2), LAST, {"damaged": 1}).settle(acknowledged)
    assert after.delivered.tolist() == [1] and not len(after.pending)
    assert after.skipped == {"damaged": 1}  # told again


def test_of_two_copies_the_later_one_holds_and_all_was_delivered() -> None:
    early = Memory(prints(1, 5), prints(7), OTHER, sequence=3)
    late = Memory(prints(1, 7), prints(8), LAST, sequence=4)
    for joined in (early.joined(late), late.joined(early)):
        assert joined.delivered.tolist() == [1, 5, 7]
        assert (joined.pending.tolist(), joined.receipt) == ([8], LAST)
    assert Memory().joined(early).receipt == OTHER


def items(keys: NDArray[np.uint64] | None = None) -> Items:
    flags = np.array([False, True, False, False])
    return Items(prints(11, 0, 13, 14), flags, ~flags, keys)


def test_items_are_matched_by_place() -> None:
    longer = items().of(6, None)
    assert longer.prints.tolist() == [11, 0, 13, 14, 0, 0]
    assert longer.useless.tolist() == [False, True, *[False] * 4]
    assert items().of(2, None).prints.tolist() == [11, 0]


def test_items_are_matched_by_key_wherever_they_are() -> None:
    known = items(prints(101, 102, 103, 104))
    found = known.of(4, prints(104, 99, 102, 101))
    assert found.prints.tolist() == [14, 0, 0, 11]
    assert found.useless.tolist() == [False, False, True, False]


def test_places_say_nothing_of_keys() -> None:
    assert not items().of(4, prints(1, 2, 3, 4)).prints.any()
    assert not items(prints(1, 2, 3, 4)).of(4, None).prints.any()
    assert not Items.none(0).of(4, prints(1, 2, 3, 4)).prints.any()


def test_a_sample_takes_eight_bytes_and_four_bits() -> None:
    numbers = np.arange(1, 8001, dtype=np.uint64)
    flags = np.zeros((2, 8000), bool)
    memory = Memory(numbers, items=Items(numbers, flags[0], flags[1]))
    size = sum(len(value) for value in memory.to_entries().values() if isinstance(value, bytes))
    assert size == 8000 * 8.5
    gone = replace(memory, items=Items.none(0))
    assert len(gone.to_entries()["delivered-others"]) == 8000 * 8  # type: ignore[arg-type]
