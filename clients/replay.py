"""The client's side of replay: each sample is sent once, the most useful ones first."""

import math
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from flwr.app import ConfigRecord, RecordDict
from numpy.typing import NDArray

from clients.budget import Encoded, Encoder, encode_within_budget, finest_fitting
from clients.candidates import Candidates
from clients.client_round import TOO_LARGE, ClientRound, Contribution
from clients.codec_choice import chosen_codec
from clients.device_file import Device, DeviceFile
from clients.inventory import DUPLICATE, Inventory
from clients.memory import Memory
from clients.selection import FIRST_TRIED, Selection, Selector, whole
from codec.messages import ReplayRequest
from codec.random import Stream
from codec.samples.choice import Choice
from codec.samples.rate_curve import knob_of, with_setting

SENT_KEY = "quantized-data"
_RANDOM = (
    "the data set gives another version of a sample each time it is read, as after a random "
    "transform: each is sent in one version, for ever. Give the clients a data set without random "
    "transforms, and the strategy an augment= instead"
)


def recall(
    state: RecordDict, bank: bytes, device: Device | None
) -> tuple[Memory, DeviceFile | None]:
    """Return what a device remembers of a bank, and the file that remembers it, too.

    Parameters
    ----------
    state : RecordDict
        The client's own.
    bank : bytes
        Id of a durable bank; empty: the bank, and what is remembered, live as long as the run.
    device : Device or None
        Where the file is; None: there is none.

    Raises
    ------
    DeviceFileError
        If the file cannot be used.
    """
    record = state.get(_state_key(bank))
    known = isinstance(record, ConfigRecord)
    memory = Memory.from_entries(cast(ConfigRecord, record)) if known else Memory()
    if not bank or device is None:
        return memory, None
    file = DeviceFile(device, bank)
    return memory.joined(file.read(is_new=not known)), file


def _state_key(bank: bytes) -> str:
    return f"{SENT_KEY}-{bank.hex()}" if bank else SENT_KEY


def answer_replay(
    work: ClientRound[ReplayRequest], state: RecordDict, device: Device | None = None
) -> Contribution:
    """Send samples that the server does not have, and remember them.

    Parameters
    ----------
    work : ClientRound
    state : RecordDict
        The client's own; remembers what was sent.
    device : Device, optional
        Where what was sent to a durable bank is remembered, too.

    Raises
    ------
    CodecError
        If not one sample of the client can ever be used, or the device cannot remember.
    """
    request = work.request
    is_told = _state_key(request.bank) in state
    memory, file = recall(state, request.bank, device)
    memory = memory.settle(request.acknowledged)
    inventory = Inventory(work.reader, memory, request.bank, work.client)
    contribution = replay_round(work, inventory, memory.choice(request.codec))
    contribution.skipped.update(memory.skipped)  # of a reply that was lost
    inventory.send(contribution)
    is_sure = bool(inventory.counts().left(request.keep_rate)) or inventory.verify()
    if inventory.untold():
        contribution.skipped[DUPLICATE] += inventory.untold()
    notes = (*contribution.notes, *((_RANDOM,) if inventory.became_random else ()))
    after = inventory.memory(contribution)
    if contribution.choice is not None:
        after = after.with_choice(request.codec, contribution.choice)
    if file is not None:  # before the reply leaves
        file.write(after)
        notes += file.notes
    entries: dict[str, Any] = after.to_entries()
    state[_state_key(request.bank)] = ConfigRecord(entries)
    return replace(
        contribution,
        notes=notes,
        remaining=inventory.counts().left(request.keep_rate) or int(not is_sure),
        growing=bool(getattr(work.source, "growing", False)) or inventory.has_changed,
        tells_choice=not (is_told and len(memory.delivered)),
    )


def replay_round(
    work: ClientRound[ReplayRequest], inventory: Inventory, choice: Choice | None = None
) -> Contribution:
    """Send the most useful of the samples that were never sent.

    Parameters
    ----------
    work : ClientRound
    inventory : Inventory
        Knows what was sent, and learns what is read.
    choice : Choice, optional
        What codec ``auto`` was found to be; None: it is measured, if it is left to a measurement.

    Raises
    ------
    CodecError
        If not one sample of the client can ever be used; with what is wrong.
    """
    request, rng = work.request, work.generator()
    inventory.check(work.generator(Stream.CHECKS))
    left = inventory.counts().left(request.keep_rate)
    wanted = min(left, request.samples_per_round or left)
    if wanted <= 0:
        return Contribution()
    work.check()  # before anything is coded
    # The order does not depend on what is known, so that a round that is repeated is the same.
    order = rng.permutation(len(work.source))
    order = order[inventory.unsent()[order]]
    candidates = Candidates(work.reader, order, inventory.accept)
    like = None  # those that the search for what fits tries first, in random order
    if request.uplink_budget:
        like, _ = candidates.first(min(FIRST_TRIED, wanted))
    notes: tuple[str, ...] = ()
    if choice is None:
        choice, notes = chosen_codec(work)
    sending = _Sending(work, candidates, work.encoder(by_label=True, like=like, choice=choice))
    pool = sending.pool(wanted) if work.scores_samples else 0
    encoded = sending.encoded(rng, wanted, pool)
    if request.finest and len(encoded.selection) >= min(wanted, len(candidates.order)):
        encoded = sending.filled(encoded)
    samples, targets, positions = sending.chosen(encoded.selection)
    indices, is_first = candidates.order[positions], not inventory.counts().sent
    if is_first:
        candidates.check_any_left()
        encoded.check_any_fits(request.uplink_budget)
    candidates.drop(encoded.too_large, TOO_LARGE)
    if inventory.is_new:  # told once, with the first samples
        candidates.skipped.update(work.skipped_before)
    if is_first and not inventory.is_random and work.reader.is_random(indices, samples):
        inventory.become_random()
    return Contribution(
        encoded.payloads,
        pool or len(positions),
        indices,
        inventory.fingerprints(indices[sending.places(targets)]),
        variance_kept=sending.variance_kept(samples),
        clipped=candidates.clipped,
        skipped=candidates.skipped,
        useless=tuple(candidates.useless),
        refused=tuple(candidates.refused),
        notes=notes,
        choice=choice,
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
            self.likely = max(1, len(self.chosen(unscored.selection)[2]))
        pool = math.ceil(request.pool_factor * self.likely)
        return len(self.candidates.first(pool)[0])

    def encoded(self, rng: np.random.Generator, wanted: int, pool: int) -> Encoded:
        """Return what is sent: of scored candidates, or of all, in their order."""
        if not pool:
            return self._fitting(self._first, wanted, self.likely)
        select = self.work.selector(*self.candidates.first(pool), rng)
        return self._fitting(select, min(wanted, pool), self.likely)

    def filled(self, encoded: Encoded) -> Encoded:
        """Return all samples, as fine as the budget and the request allow."""
        request, coarse = self.work.request, self.encoder

        def at(setting: float) -> Encoded:
            self.encoder = replace(coarse, codec=with_setting(coarse.codec, setting))
            with self.work.stage("encode"):
                return replace(encoded, payloads=self._encode(encoded.selection))

        knob = knob_of(coarse.codec)
        start = float(getattr(coarse.codec, knob)) if knob else 0.0
        found, setting = finest_fitting(encoded, at, start, request.finest, request.uplink_budget)
        self.encoder = replace(coarse, codec=with_setting(coarse.codec, setting))
        return found

    def chosen(self, selection: Selection) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]:
        """Return selected samples, targets and positions, without those of no use."""
        positions = selection.positions
        samples, targets = self.candidates.first(int(positions.max(initial=-1)) + 1)
        positions = positions[positions < len(samples)]
        return samples[positions], targets[positions], positions

    def places(self, targets: NDArray[Any]) -> NDArray[np.int64]:
        """Return the places of the chosen samples in the order of the payloads."""
        everything = Selection(np.arange(len(targets)))
        return self.encoder.in_order(targets, everything).positions

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
