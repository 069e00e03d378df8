"""The client's side of replay: each sample is sent once, the most useful ones first."""

import math
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, RecordDict
from numpy.typing import NDArray

from clients.budget import encode_within_budget
from clients.candidates import Candidates
from clients.client_round import ClientRound, Contribution
from clients.delivery import SentSamples
from clients.selection import FIRST_TRIED, Selection, Selector, whole
from codec.messages import ReplayRequest

SENT_KEY = "quantized-data"
TOO_LARGE = "larger than uplink-budget"
_RANDOM = (
    "the data set gives another version of a sample each time it is read, as after a random "
    "transform: each is sent in one version, for ever. Give the clients a data set without random "
    "transforms, and the strategy an augment= instead"
)


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
    contribution = replay_round(work, settled.delivered, settled.useless)
    after = settled.send(contribution.sent, contribution.useless, request.server_round)
    entries: dict[str, Any] = after.to_entries()
    state[SENT_KEY] = ConfigRecord(entries)
    return contribution, after.remaining(replay_quota(after.usable, request.keep_rate))


def replay_round(
    work: ClientRound[ReplayRequest],
    sent: NDArray[np.bool_],
    useless: NDArray[np.bool_] | None = None,
) -> Contribution:
    """Send the most useful of the samples that were never sent.

    Parameters
    ----------
    work : ClientRound
    sent : (N,) bool array
        What earlier rounds sent.
    useless : (N,) bool array, optional
        What earlier rounds found to be of no use.
    """
    request, rng = work.request, work.generator()
    tried = sent if useless is None else sent | useless
    left = replay_quota(len(sent) - int((tried & ~sent).sum()), request.keep_rate) - int(sent.sum())
    wanted = min(left, request.samples_per_round or left)
    if wanted <= 0:
        return Contribution()
    work.spec()  # the terms are checked before anything is coded
    budget = request.uplink_budget
    order = rng.permutation(np.flatnonzero(~tried))
    candidates = Candidates(work.reader, order)
    encoder = work.encoder(by_label=True)

    def encode(selection: Selection) -> tuple[bytes, ...]:
        needed = int(selection.positions.max(initial=-1)) + 1
        return encoder.encode(*candidates.first(needed), selection)

    def first(count: float) -> Selection:
        """Select the first candidates; a random selection when their order is random."""
        return Selection(np.arange(len(candidates.first(whole(count))[0])))

    select: Selector = first
    pool, start = 0, FIRST_TRIED
    if request.needs_scores:
        with work.stage("encode"):
            unscored = encode_within_budget(first, encode, wanted, budget) if budget else None
        likely = wanted if unscored is None else max(1, len(unscored.selection))
        pool = min(len(candidates.order), math.ceil(request.pool_factor * likely))
        samples, targets = candidates.first(pool)
        pool = len(samples)
        select = work.selector(samples, targets, rng)
        wanted, start = min(wanted, pool), likely
    with work.stage("encode"):
        encoded = encode_within_budget(select, encode, wanted, budget, start)
        positions = encoded.selection.positions
        samples, _ = candidates.first(int(positions.max(initial=-1)) + 1)
        kept = encoder.variance_kept(samples, encoded.selection)
    too_large = candidates.order[list(encoded.too_large)]
    if not tried.any():  # told once, with the first samples
        candidates.skipped.update(getattr(work.source, "skipped", {}))
    if len(too_large):
        candidates.skipped[TOO_LARGE] += len(too_large)
    return Contribution(
        encoded.payloads,
        pool or len(positions),
        candidates.order[positions],
        variance_kept=kept,
        clipped=candidates.clipped,
        skipped=candidates.skipped,
        useless=(*candidates.useless, *too_large.tolist()),
        notes=(_RANDOM,) if not sent.any() and work.reader.is_random() else (),
    )


def replay_quota(length: int, keep_rate: float) -> int:
    """Return how many of `length` samples a client ever sends: the rounded share, at least 1."""
    return min(length, max(1, round(keep_rate * length)))
