"""What a client knows of what it sent: delivered, or pending until the server says."""

import numpy as np
import pytest

from clients.delivery import SentSamples
from codec import CodecError


def sent(*indices: int, server_round: int = 3) -> SentSamples:
    """Return the state of a client of 10 samples after its first reply."""
    return SentSamples.none(10).send(np.array(indices), server_round)


@pytest.mark.parametrize("length", [0, 1, 8, 9, 1000])
def test_sent_flags_survive_packing(length: int) -> None:
    rng = np.random.default_rng(0)
    state = SentSamples(rng.random(length) < 0.3, rng.random(length) < 0.1, 4)
    entries = state.to_entries()
    again = SentSamples.from_entries(entries, length)
    assert (again.delivered == state.delivered).all() and (again.pending == state.pending).all()
    assert again.pending_round == 4


def test_flags_of_another_length_are_refused() -> None:
    with pytest.raises(CodecError, match="2 bytes of sent flags, but 17 samples take 3"):
        SentSamples.from_entries(sent(1).to_entries(), 17)


@pytest.mark.parametrize("acknowledged", [3, None])
def test_what_arrived_is_delivered(acknowledged: int | None) -> None:
    after = sent(1, 4).settle(acknowledged)
    assert np.flatnonzero(after.delivered).tolist() == [1, 4]
    assert not after.pending.any()


@pytest.mark.parametrize("acknowledged", [-1, 2, 4])
def test_what_was_lost_was_never_sent(acknowledged: int) -> None:
    after = sent(1, 4).settle(acknowledged)
    assert not after.delivered.any() and not after.pending.any()


def test_delivered_samples_stay_delivered() -> None:
    after = sent(1, 4).settle(3).send(np.array([7]), 4).settle(-1)
    assert np.flatnonzero(after.delivered).tolist() == [1, 4]


def test_pending_samples_count_as_sent() -> None:
    state = sent(1, 4).settle(3).send(np.array([7]), 4)
    assert (state.remaining(10), state.remaining(3), state.remaining(2)) == (7, 0, 0)
