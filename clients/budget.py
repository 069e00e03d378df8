"""Selected samples to payload bytes, within a byte budget if there is one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients.reading import Reader
from clients.selection import FIRST_TRIED, Selection, Selector, at_most, largest_count
from codec import (
    INCLUSION_UNIT,
    CodecError,
    CodecOptions,
    DecodedSamples,
    SampleSpec,
    encode_samples,
    reconstruct_samples,
    variance_kept,
)

# Values in a payload: coding holds some twenty bytes for each.
_MOST_VALUES = 1 << 22
_MEASURED = 64  # samples whose loss is measured
_MOST_TOO_LARGE = 32  # samples left out of a round because none of them fits the budget


@dataclass(frozen=True)
class Encoded:
    """Payloads and what they hold.

    Attributes
    ----------
    payloads : tuple of bytes
        Serialized `codec.SamplePayload`s; none when nothing was selected.
    selection : Selection
        Which of the candidates they hold.
    too_large : tuple of int
        Positions of candidates that take more than the whole budget.
    """

    payloads: tuple[bytes, ...]
    selection: Selection
    too_large: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all payloads."""
        return sum(map(len, self.payloads))


@dataclass(frozen=True)
class Encoder:
    """Encodes selections for one client and round.

    Attributes
    ----------
    reader : Reader
        Of the samples; knows their spec and the server's limits.
    codec : CodecOptions
    key : (seed, client, round)
        Key of the dither, each >= 0.
    by_label : bool
        Sort the samples by label (stable), which costs the labels fewer bits; for payloads
        whose order carries no information.
    """

    reader: Reader
    codec: CodecOptions
    key: tuple[int, int, int]
    by_label: bool = False

    def encode(
        self, samples: NDArray[Any], targets: NDArray[Any], selection: Selection
    ) -> tuple[bytes, ...]:
        """Return the payloads of the selected samples: none, one, or several if one is too large.

        Parameters
        ----------
        samples : (N, *shape) array of the candidates
        targets : (N,) or (N, target_size) array
        selection : Selection
            Positions among the N candidates.

        Raises
        ------
        CodecError
            If a single sample is beyond the server's limits, or cannot be coded.
        """
        positions, inclusion = selection.positions, selection.inclusion
        if self.by_label and self.reader.kind.classes:
            order = np.argsort(targets[positions], kind="stable")
            positions = positions[order]
            inclusion = None if inclusion is None else inclusion[order]
        payloads = []
        for spec, part, key in self._parts(samples[positions]):
            payload = encode_samples(
                samples[positions[part]],
                targets[positions[part]],
                spec,
                key=key,
                inclusion=None if inclusion is None else inclusion[part],
            )
            payloads.append(payload.to_bytes())
        return tuple(payloads)

    def reconstruct(
        self, samples: NDArray[Any], targets: NDArray[Any], selection: Selection
    ) -> DecodedSamples:
        """Return what the payloads of `encode` decode to; for an encoder that does not sort."""
        positions, inclusion = selection.positions, selection.inclusion
        weights = np.ones(len(positions), np.float32)
        if inclusion is not None:
            weights = np.float32(INCLUSION_UNIT) / inclusion.astype(np.float32)
        chosen = samples[positions]
        values = [
            reconstruct_samples(chosen[part], spec, key) for spec, part, key in self._parts(chosen)
        ]
        empty = np.empty((0, *self.reader.kind.shape), np.float32)
        return DecodedSamples(np.concatenate([empty, *values]), targets[positions], weights, {})

    def variance_kept(self, samples: NDArray[Any], selection: Selection) -> float:
        """Return the share of the selected samples' variance that survives their coding."""
        chosen = samples[selection.positions]
        if not len(chosen):
            return 1.0
        spec = self.reader.spec_of(chosen, self.codec)
        if spec.sample_codec.lossless:
            return 1.0
        chosen = chosen[:_MEASURED]
        return variance_kept(chosen, reconstruct_samples(chosen, spec, self.key))

    def _parts(
        self, samples: NDArray[Any]
    ) -> Iterator[tuple[SampleSpec, slice, tuple[int, int, int]]]:
        """Yield spec, samples and key of each payload."""
        if not len(samples):
            return
        terms = self.reader.terms
        spec = self.reader.spec_of(samples, self.codec)
        values = max(spec.sample_codec.decoded_values(spec), 1)
        if values > terms.values:
            raise CodecError(
                f"a sample {spec.shape} has {values} values, the server takes up to "
                f"{terms.values}; raise the strategy's limits=DecodeLimits(values=...), or give "
                "the data set smaller samples"
            )
        size = max(1, min(terms.samples, min(terms.values, _MOST_VALUES) // values))
        seed, client, server_round = self.key
        for number, start in enumerate(range(0, len(samples), size)):
            part = slice(start, start + size)
            own = self.reader.spec_of(samples[part], spec.codec)
            yield own, part, (seed, client, server_round + (number << 32))


def encode_within_budget(
    select: Selector,
    encode: Callable[[Selection], tuple[bytes, ...]],
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
        From a `Selection` to payloads.
    count : float
        Samples wanted (expected number, if `select` draws at random).
    budget : int
        Most bytes, 0 for no limit. At least 95% are used when `count` does not fit, unless
        the next sample alone takes the rest. A sample that takes more by itself is left out, and
        the next one is tried.
    start : int
        Samples encoded first in the search for what fits, >= 1; the nearer, the shorter.
    """
    everything = select(count)
    if budget == 0 or len(everything) == 0:
        return Encoded(encode(everything), everything)
    too_large: list[int] = []
    while len(too_large) < min(_MOST_TOO_LARGE, len(everything)):
        found = _largest_fitting(_without(select, too_large), encode, count, budget, start)
        if len(found.selection):
            return Encoded(found.payloads, found.selection, tuple(too_large))
        too_large += found.too_large
        start = 1
    nothing = np.zeros(0, np.int64)
    return Encoded((), Selection(nothing), tuple(too_large))


def _largest_fitting(
    select: Selector,
    encode: Callable[[Selection], tuple[bytes, ...]],
    count: float,
    budget: int,
    start: int,
) -> Encoded:
    """Return as many samples as fit; none, and the first as too large, if that one does not."""
    tried: dict[int, Encoded] = {}

    def size_of(number: int) -> int:
        selection = at_most(number, select, count)
        tried[number] = Encoded(encode(selection), selection)
        return tried[number].size

    best = largest_count(len(select(count)), budget, size_of, start)
    if best:
        return tried[best]
    first = at_most(1, select, count).positions[:1]
    return Encoded((), Selection(first[:0]), tuple(first.tolist()))


def _without(select: Selector, dropped: list[int]) -> Selector:
    """Return a selector that never selects some positions."""
    if not dropped:
        return select

    def others(count: float) -> Selection:
        selection = select(count)
        kept = ~np.isin(selection.positions, dropped)
        inclusion = selection.inclusion
        return Selection(selection.positions[kept], None if inclusion is None else inclusion[kept])

    return others
