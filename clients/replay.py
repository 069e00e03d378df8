"""The client's side of replay: each sample is sent once, the most useful ones first."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, RecordDict
from numpy.typing import NDArray

from clients.budget import Encoded, Encoder, encode_within_budget
from clients.candidates import Candidates
from clients.client_round import TOO_LARGE, ClientRound, Contribution
from clients.delivery import SentSamples
from clients.selection import FIRST_TRIED, Selection, Selector, whole
from codec.messages import ReplayRequest

SENT_KEY = "quantized-data"
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
    contribution.skipped.update(settled.skipped)  # of a reply that was lost
    after = settled.send(contribution)
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

    Raises
    ------
    CodecError
        If not one sample of the client can ever be used; with what is wrong.
    """
    request, rng = work.request, work.generator()
    tried = sent if useless is None else sent | useless
    usable = len(sent) - int((tried & ~sent).sum())
    left = replay_quota(usable, request.keep_rate) - int(sent.sum())
    wanted = min(left, request.samples_per_round or left)
    if wanted <= 0:
        return Contribution()
    work.check()  # before anything is coded
    candidates = Candidates(work.reader, rng.permutation(np.flatnonzero(~tried)))
    sending = _Sending(work, candidates, work.encoder(by_label=True))
    pool = sending.pool(wanted) if work.scores_samples else 0
    encoded = sending.encoded(rng, wanted, pool)
    samples, positions = sending.chosen(encoded.selection)
    indices, is_first = candidates.order[positions], not sent.any()
    if is_first:
        candidates.check_any_left()
        encoded.check_any_fits(request.uplink_budget)
    candidates.drop(encoded.too_large, TOO_LARGE)
    if not tried.any():  # told once, with the first samples
        candidates.skipped.update(work.skipped_before)
    is_random = is_first and work.reader.is_random(indices, samples)
    return Contribution(
        encoded.payloads,
        pool or len(positions),
        indices,
        variance_kept=sending.variance_kept(samples),
        clipped=candidates.clipped,
        skipped=candidates.skipped,
        useless=tuple(candidates.useless),
        notes=(_RANDOM,) if is_random else (),
    )


@dataclass
class _Sending:
    """The search for what is sent in one round.

    Attributes
    ----------
    work : ClientRound
    candidates : Candidates
        Read only as far as needed.
    encoder : Encoder
    likely : int
        Samples that the budget will allow, as far as known.
    """

    work: ClientRound[ReplayRequest]
    candidates: Candidates
    encoder: Encoder
    likely: int = FIRST_TRIED

    def pool(self, wanted: int) -> int:
        """Read the candidates that are scored, and return their number."""
        request, self.likely = self.work.request, wanted
        if request.uplink_budget:
            unscored = self._fitting(self._first, wanted, FIRST_TRIED)
            self.likely = max(1, len(self.chosen(unscored.selection)[1]))
        pool = math.ceil(request.pool_factor * self.likely)
        return len(self.candidates.first(pool)[0])

    def encoded(self, rng: np.random.Generator, wanted: int, pool: int) -> Encoded:
        """Return what is sent: of scored candidates, or of all, in their order."""
        if not pool:
            return self._fitting(self._first, wanted, self.likely)
        select = self.work.selector(*self.candidates.first(pool), rng)
        return self._fitting(select, min(wanted, pool), self.likely)

    def chosen(self, selection: Selection) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Return selected samples and their positions, without those that turned out useless."""
        positions = selection.positions
        samples, _ = self.candidates.first(int(positions.max(initial=-1)) + 1)
        positions = positions[positions < len(samples)]
        return samples[positions], positions

    def variance_kept(self, samples: NDArray[Any]) -> float:
        """Return the share of the samples' variance that survives."""
        with self.work.stage("encode"):
            return self.encoder.variance_kept(samples)

    def _fitting(self, select: Selector, wanted: int, start: int) -> Encoded:
        with self.work.stage("encode"):
            budget = self.work.request.uplink_budget
            return encode_within_budget(select, self._encode, wanted, budget, start)

    def _first(self, count: float) -> Selection:
        """Select the first candidates, unread; a random selection when their order is random."""
        return Selection(np.arange(min(whole(count), len(self.candidates.order))))

    def _encode(self, selection: Selection) -> tuple[bytes, ...]:
        needed = int(selection.positions.max(initial=-1)) + 1
        samples, targets = self.candidates.first(needed)
        return self.encoder.encode(samples, targets, selection.below(len(samples)))


def replay_quota(length: int, keep_rate: float) -> int:
    """Return how many of `length` samples a client ever sends: the rounded share, at least 1."""
    return min(length, max(1, round(keep_rate * length)))
