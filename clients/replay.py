"""The client's side of replay: each sample is sent once, the most useful ones first."""

import math
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, RecordDict
from numpy.typing import NDArray

from clients.budget import encode_within_budget
from clients.candidates import Candidates
from clients.client_round import NOTHING, ClientRound, Contribution
from clients.delivery import SentSamples
from clients.selection import FIRST_TRIED, Selection, Selector, whole
from codec.messages import ReplayRequest

SENT_KEY = "quantized-data"


def answer_replay(work: ClientRound[ReplayRequest], state: RecordDict) -> tuple[Contribution, int]:
    """Send samples that the server does not have, and remember them.

    Parameters
    ----------
    work : ClientRound
    state : RecordDict
        The client's own; remembers what was sent.

    Returns
    -------
    Contribution, int
        And how many samples are left to send once these arrive.
    """
    request, length = work.request, len(work.source)
    record, before = state.get(SENT_KEY), SentSamples.none(length)
    if isinstance(record, ConfigRecord):
        before = SentSamples.from_entries(record, length)
    settled = before.settle(request.acknowledged)
    contribution = replay_round(work, settled.delivered)
    after = settled.send(contribution.sent, request.server_round)
    entries: dict[str, Any] = after.to_entries()
    state[SENT_KEY] = ConfigRecord(entries)
    return contribution, after.remaining(replay_quota(length, request.keep_rate))


def replay_round(work: ClientRound[ReplayRequest], sent: NDArray[np.bool_]) -> Contribution:
    """Send the most useful of the samples that were never sent.

    Parameters
    ----------
    work : ClientRound
    sent : (N,) bool array
        What earlier rounds sent.
    """
    request, rng = work.request, work.generator()
    left = replay_quota(len(sent), request.keep_rate) - int(sent.sum())
    wanted = min(left, request.samples_per_round or left)
    if wanted <= 0:
        return NOTHING
    spec, budget = work.spec(), request.uplink_budget
    order = rng.permutation(np.flatnonzero(~sent))
    candidates = Candidates(work.source, spec, order)
    encoder = work.encoder(spec, by_label=True)

    def encode(selection: Selection) -> bytes:
        needed = int(selection.positions.max(initial=-1)) + 1
        return encoder.encode(*candidates.first(needed), selection)

    select: Selector = _first
    pool, start = 0, FIRST_TRIED
    if request.needs_scores:
        with work.stage("encode"):
            unscored = encode_within_budget(_first, encode, wanted, budget) if budget else None
        likely = wanted if unscored is None else len(unscored.selection)
        pool = min(len(order), math.ceil(request.pool_factor * likely))
        select = work.selector(*candidates.first(pool), spec, rng)
        wanted, start = min(wanted, pool), likely
    with work.stage("encode"):
        encoded = encode_within_budget(select, encode, wanted, budget, start)
    positions = encoded.selection.positions
    return Contribution(encoded.data, pool or len(positions), order[positions])


def replay_quota(length: int, keep_rate: float) -> int:
    """Return how many of `length` samples a client ever sends: the rounded share, at least 1."""
    return min(length, max(1, round(keep_rate * length)))


def _first(count: float) -> Selection:
    """Select the first candidates; a random selection when their order is random."""
    return Selection(np.arange(whole(count)))
