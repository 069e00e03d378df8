"""Selected samples to payload bytes, within a byte budget if there is one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients.selection import FIRST_TRIED, Selection, Selector, at_most, largest_count
from codec import (
    INCLUSION_UNIT,
    CodecError,
    DecodedSamples,
    SampleSpec,
    encode_samples,
    reconstruct_samples,
)


@dataclass(frozen=True)
class Encoded:
    """Payload bytes and what they hold.

    Attributes
    ----------
    data : bytes
        A serialized `codec.SamplePayload`; empty when nothing was selected.
    selection : Selection
        Which of the candidates `data` holds.
    """

    data: bytes
    selection: Selection


@dataclass(frozen=True)
class Encoder:
    """Encodes selections for one client and round.

    Attributes
    ----------
    spec : SampleSpec
        What the samples are, and the codec options.
    key : (seed, client, payload)
        Key of the dither, each >= 0.
    by_label : bool
        Sort the samples by label (stable), which costs the labels fewer bits; for payloads
        whose order carries no information.
    """

    spec: SampleSpec
    key: tuple[int, int, int]
    by_label: bool = False

    def encode(self, samples: NDArray[Any], targets: NDArray[Any], selection: Selection) -> bytes:
        """Return the payload bytes of the selected samples, b"" if there are none.

        Parameters
        ----------
        samples : (N, *shape) array of the candidates
        targets : (N,) int64 or (N, target_size) float32 array
        selection : Selection
            Positions among the N candidates.
        """
        if len(selection) == 0:
            return b""
        positions, inclusion = selection.positions, selection.inclusion
        if self.by_label and self.spec.classes:
            order = np.argsort(targets[positions], kind="stable")
            positions = positions[order]
            inclusion = None if inclusion is None else inclusion[order]
        payload = encode_samples(
            samples[positions], targets[positions], self.spec, key=self.key, inclusion=inclusion
        )
        return payload.to_bytes()

    def reconstruct(
        self, samples: NDArray[Any], targets: NDArray[Any], selection: Selection
    ) -> DecodedSamples:
        """Return what the bytes of `encode` decode to; for an encoder that does not sort."""
        positions, inclusion = selection.positions, selection.inclusion
        weights = np.ones(len(positions), np.float32)
        if inclusion is not None:
            weights = np.float32(INCLUSION_UNIT) / inclusion.astype(np.float32)
        values = reconstruct_samples(samples[positions], self.spec, self.key)
        return DecodedSamples(values, targets[positions], weights, {})


def encode_within_budget(
    select: Selector,
    encode: Callable[[Selection], bytes],
    count: float,
    budget: int,
    start: int = FIRST_TRIED,
) -> Encoded:
    """Encode `count` samples, or as many as fit.

    Parameters
    ----------
    select : callable
        From a number of samples to a `Selection`.
    encode : callable
        From a `Selection` to payload bytes.
    count : float
        Samples wanted (expected number, if `select` draws at random).
    budget : int
        Most bytes, 0 for no limit. At least 95% are used when `count` does not fit, unless
        the next sample alone takes the rest.
    start : int
        Samples encoded first in the search for what fits, >= 1; the nearer, the shorter.

    Raises
    ------
    CodecError
        If even one sample takes more than `budget` bytes.
    """
    everything = select(count)
    if budget == 0 or len(everything) == 0:
        return Encoded(encode(everything), everything)
    tried: dict[int, Encoded] = {}

    def size_of(number: int) -> int:
        selection = at_most(number, select, count)
        tried[number] = Encoded(encode(selection), selection)
        return len(tried[number].data)

    best = largest_count(len(everything), budget, size_of, start)
    if best == 0:
        raise CodecError(f"uplink-budget = {budget} bytes is less than one sample takes")
    return tried[best]
