"""What a client knows of what it sent: delivered, or pending until the server says."""

from collections import Counter

import numpy as np
import pytest

from clients.client_round import Contribution
from clients.delivery import SentSamples, pack_flags, unpack_flags
from codec.identity import receipt

LAST = receipt((b"payload 3",))
OTHER = receipt((b"payload 2",))


def reply(*indices: int, useless: tuple[int, ...] = ()) -> Contribution:
    skipped = Counter({"damaged": len(useless)} if useless else {})
    return Contribution((b"payload 3",), sent=np.array(indices), useless=useless, skipped=skipped)


def sent(*indices: int) -> SentSamples:
    """Return the state of a client of 10 samples after its first reply."""
    return SentSamples.none(10).send(reply(*indices))


@pytest.mark.parametrize("length", [0, 1, 8, 9, 1000])
def test_sent_flags_survive_packing(length: int) -> None:
    rng = np.random.default_rng(0)
    flags = [rng.random(length) < share for share in (0.3, 0.1, 0.2)]
    state = SentSamples(flags[0], flags[1], flags[2], LAST, {"damaged": 3})
    entries = state.to_entries()
    again = SentSamples.from_entries(entries, length)
    assert (again.delivered == state.delivered).all() and (again.pending == state.pending).all()
    assert (again.useless == state.useless).all()
    assert (again.receipt, again.skipped) == (LAST, {"damaged": 3})


@pytest.mark.parametrize(("before", "after"), [(10, 17), (17, 10), (10, 0), (0, 10)])
def test_a_source_may_change_its_length(before: int, after: int) -> None:
    """What is new was never sent; what is gone is forgotten."""
    flags = np.arange(before) % 3 == 0
    again = unpack_flags(pack_flags(flags), after)
    common = min(before, after)
    assert len(again) == after and (again[:common] == flags[:common]).all()
    assert not again[common:].any()


@pytest.mark.parametrize("acknowledged", [LAST, None])
def test_what_arrived_is_delivered(acknowledged: bytes | None) -> None:
    after = sent(1, 4).settle(acknowledged)
    assert np.flatnonzero(after.delivered).tolist() == [1, 4]
    assert not after.pending.any()


@pytest.mark.parametrize("acknowledged", [b"", OTHER])
def test_what_was_lost_was_never_sent(acknowledged: bytes) -> None:
    after = sent(1, 4).settle(acknowledged)
    assert not after.delivered.any() and not after.pending.any()


def test_delivered_samples_stay_delivered() -> None:
    after = sent(1, 4).settle(LAST).send(reply(7)).settle(b"")
    assert np.flatnonzero(after.delivered).tolist() == [1, 4]


def test_pending_samples_count_as_sent() -> None:
    state = sent(1, 4).settle(LAST).send(reply(7))
    assert (state.remaining(10), state.remaining(3), state.remaining(2)) == (7, 0, 0)


@pytest.mark.parametrize("acknowledged", [LAST, b""])
def test_samples_of_no_use_stay_so_whether_or_not_the_reply_arrived(acknowledged: bytes) -> None:
    after = SentSamples.none(10).send(reply(1, useless=(4, 8))).settle(acknowledged)
    assert np.flatnonzero(after.useless).tolist() == [4, 8] and after.usable == 8
    assert after.skipped == ({} if acknowledged == LAST else {"damaged": 2})
