"""Selected samples to payload bytes, within a byte budget if there is one."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients.reading import Reader
from clients.selection import (
    BUDGET_AIM,
    BUDGET_FILL,
    FIRST_TRIED,
    Selection,
    Selector,
    at_most,
    largest_count,
)
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

# Coding a payload holds 30 bytes for each of its values with codec "dct", 36 with "columns".
_WORKING_BYTES = 96 << 20
_BYTES_OF_VALUE = 32
_MOST_VALUES = _WORKING_BYTES // _BYTES_OF_VALUE  # of a payload, as in 1,000 images of CIFAR
_MEASURED, _MEASURED_VALUES = 64, 1 << 20  # samples whose loss is measured, and their values
_MOST_LOOKED_AT = 256  # samples that choose between codecs
_SIZE_OF_STEP = -0.9  # about which power of a step the bytes are, before that is measured
_MOST_REFINED = 8  # settings tried
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
    smallest : int
        Bytes of the smallest of those.
    """

    payloads: tuple[bytes, ...]
    selection: Selection
    too_large: tuple[int, ...] = ()
    smallest: int = 0

    @property
    def size(self) -> int:
        """Bytes of all payloads."""
        return sum(map(len, self.payloads))

    def check_any_fits(self, budget: int) -> None:
        """Raise `CodecError` if not one of the candidates fits the budget."""
        if self.too_large and not self.payloads:
            raise CodecError(
                f"uplink-budget = {budget} bytes is less than one sample takes: the smallest of "
                f"{len(self.too_large)} takes {self.smallest}. Raise the budget, or the codec's "
                "step"
            )


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
    like : (M, *shape) array or None
        Samples whose spread the step is relative to; None: those of each payload. What a number of
        samples takes is smooth in that number only if they are the same for all payloads.
    """

    reader: Reader
    codec: CodecOptions
    key: tuple[int, int, int]
    by_label: bool = False
    like: NDArray[Any] | None = field(default=None, repr=False, compare=False)
    # By the positions of a selection: samples in each of its payloads.
    _sizes: dict[bytes, list[int]] = field(default_factory=dict, repr=False, compare=False)

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
        selection = self.in_order(targets, selection)
        positions, inclusion = selection.positions, selection.inclusion
        return self._encode(samples, targets, positions, inclusion)

    def in_order(self, targets: NDArray[Any], selection: Selection) -> Selection:
        """Return the selection in the order in which its samples stand in the payloads."""
        if not (self.by_label and self.reader.kind.classes):
            return selection
        return selection.taken(np.argsort(targets[selection.positions], kind="stable"))

    def reconstruct(
        self, samples: NDArray[Any], targets: NDArray[Any], selection: Selection
    ) -> DecodedSamples:
        """Return what the payloads of `encode` decode to; for an encoder that does not sort.

        The same selection was encoded before.
        """
        positions, inclusion = selection.positions, selection.inclusion
        weights = np.ones(len(positions), np.float32)
        if inclusion is not None:
            weights = np.float32(INCLUSION_UNIT) / inclusion.astype(np.float32)
        values = [
            reconstruct_samples(samples[positions[part]], spec, key, self.like)
            for spec, part, key in self._payloads(samples, targets, positions)
        ]
        empty = np.empty((0, *self.reader.kind.shape), np.float32)
        return DecodedSamples(np.concatenate([empty, *values]), targets[positions], weights, {})

    def variance_kept(self, samples: NDArray[Any]) -> float:
        """Return the share of the variance of samples, (N, *shape), that survives their coding.

        It is measured on the first of them.
        """
        most = max(1, min(_MEASURED, _MEASURED_VALUES // math.prod(samples.shape[1:])))
        chosen = samples[:most]
        if not len(chosen):
            return 1.0
        spec = self.reader.spec_of(chosen, self.codec, like=self.like)
        if spec.sample_codec.lossless:
            return 1.0
        return variance_kept(chosen, reconstruct_samples(chosen, spec, self.key, self.like))

    def _encode(
        self,
        samples: NDArray[Any],
        targets: NDArray[Any],
        positions: NDArray[np.int64],
        inclusion: NDArray[np.uint16] | None,
    ) -> tuple[bytes, ...]:
        """Return payloads; those that bytes do not pay for are halved until they do."""
        if not len(positions):
            return ()
        codec, size = self._split(samples[positions[:_MOST_LOOKED_AT]])
        limits = self.reader.terms.limits
        starts = range(0, len(positions), size)
        waiting = [slice(s, min(s + size, len(positions))) for s in reversed(starts)]
        payloads: list[bytes] = []
        sizes: list[int] = []
        while waiting:
            part = waiting.pop()
            spec, key = self._payload(samples, targets, positions[part], codec, len(payloads))
            data = encode_samples(
                samples[positions[part]],
                targets[positions[part]],
                spec,
                key=key,
                inclusion=None if inclusion is None else inclusion[part],
                like=self.like,
            ).to_bytes()
            count = part.stop - part.start
            if limits.too_dense(spec, count, len(data)):
                middle = part.start + count // 2
                waiting += [slice(middle, part.stop), slice(part.start, middle)]
                continue
            payloads.append(data)
            sizes.append(count)
        self._sizes[positions.tobytes()] = sizes
        return tuple(payloads)

    def _payloads(
        self, samples: NDArray[Any], targets: NDArray[Any], positions: NDArray[np.int64]
    ) -> Iterator[tuple[SampleSpec, slice, tuple[int, int, int]]]:
        """Yield spec, positions and key of each payload of a selection that was encoded."""
        if not len(positions):
            return
        codec, _ = self._split(samples[positions[:_MOST_LOOKED_AT]])
        start = 0
        for number, count in enumerate(self._sizes[positions.tobytes()]):
            part = slice(start, start + count)
            spec, key = self._payload(samples, targets, positions[part], codec, number)
            yield spec, part, key
            start += count

    def _payload(
        self,
        samples: NDArray[Any],
        targets: NDArray[Any],
        chosen: NDArray[np.int64],
        codec: CodecOptions,
        number: int,
    ) -> tuple[SampleSpec, tuple[int, int, int]]:
        """Return spec and key of a payload of chosen samples."""
        seed, client, server_round = self.key
        spec = self.reader.spec_of(samples[chosen], codec, targets[chosen], self.like)
        return spec, (seed, client, server_round + (number << 32))

    def _split(self, samples: NDArray[Any]) -> tuple[CodecOptions, int]:
        """Return the codec of all payloads, and the most samples in one."""
        terms = self.reader.terms
        spec = self.reader.spec_of(samples, self.codec, like=self.like)
        # What the server counts, see `codec.samples.payload`.
        values = max(spec.sample_codec.decoded_values(spec), 4 * max(1, spec.target_size))
        if values > terms.values:
            raise CodecError(
                f"a sample {spec.shape} has {values} values, the server takes up to "
                f"{terms.values}; raise the strategy's limits=DecodeLimits(values=...), or give "
                "the data set smaller samples"
            )
        return spec.codec, max(1, min(terms.samples, min(terms.values, _MOST_VALUES) // values))


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
        Most bytes, 0 for no limit. At least 97% are used when `count` does not fit, unless
        the next sample alone takes the rest, or gives the payload a finer step: a spread is
        measured in half octaves, so that one sample more may cost 40% more, see `Encoder.like`. A
        sample that takes more by itself is left out, and the next one is tried.
    start : int
        Samples encoded first in the search for what fits, >= 1; the nearer, the shorter.
    """
    everything = select(count)
    if budget == 0 or len(everything) == 0:
        return Encoded(encode(everything), everything)
    too_large: list[int] = []
    smallest = 0
    while len(too_large) < min(_MOST_TOO_LARGE, len(everything)):
        found = _largest_fitting(_without(select, too_large), encode, count, budget, start)
        if len(found.selection):
            return replace(found, too_large=tuple(too_large), smallest=smallest)
        if not found.too_large:
            break  # what is left was not selected
        too_large += found.too_large
        smallest = min(smallest or found.smallest, found.smallest)
        start = 1
    nothing = Selection(np.zeros(0, np.int64))
    return Encoded((), nothing, tuple(too_large), smallest)


def finest_fitting(
    encoded: Encoded,
    encode: Callable[[float], Encoded],
    start: float,
    finest: float,
    budget: int,
) -> tuple[Encoded, float]:
    """Encode the same samples anew, as finely as fits.

    Parameters
    ----------
    encoded : Encoded
        The samples at the setting `start`.
    encode : callable
        From a setting of the codec to the samples at that setting.
    start, finest : float
        Settings, >= 0; those between are finer than `start`, and take about a power of the setting.
    budget : int
        Most bytes. At least 97% are used unless the finest setting takes less, or the samples did
        not fit at the start.

    Returns
    -------
    Encoded, float
        The finest that was found to fit, and its setting.
    """
    best, at = encoded, start
    over: tuple[float, int] | None = None  # the coarsest setting that does not fit, and its bytes
    slope = _SIZE_OF_STEP if finest < start else -_SIZE_OF_STEP
    for _ in range(_MOST_REFINED):
        if not 0 < best.size < BUDGET_FILL * budget or at == finest or not start:
            break
        if over is not None:
            slope = math.log(over[1] / best.size) / math.log(over[0] / at)
        wanted = at * (BUDGET_AIM * budget / best.size) ** (1 / slope)
        trial = max(finest, wanted) if finest < start else min(finest, wanted)
        tried = encode(trial)
        if tried.size > budget:
            over = trial, tried.size
        elif tried.size <= best.size:
            best, at = tried, trial
            break  # the setting makes no difference any more
        else:
            best, at = tried, trial
    return best, at


def _largest_fitting(
    select: Selector,
    encode: Callable[[Selection], tuple[bytes, ...]],
    count: float,
    budget: int,
    start: int,
) -> Encoded:
    """Return as many samples as fit; none, and those that are too large, if there are any."""
    tried: dict[int, Encoded] = {}

    def size_of(number: int) -> int:
        selection = at_most(number, select, count)
        tried[number] = Encoded(encode(selection), selection)
        return tried[number].size

    best = largest_count(len(select(count)), budget, size_of, start)
    return tried[best] if best else _fitting_of(at_most(1, select, count), encode, budget)


def _fitting_of(
    fewest: Selection, encode: Callable[[Selection], tuple[bytes, ...]], budget: int
) -> Encoded:
    """Return which of the fewest samples that can be selected fit, or are too large."""
    fewest = fewest.where(np.arange(len(fewest)) < _MOST_TOO_LARGE)
    place = np.arange(len(fewest))
    sizes = {}
    for number in place.tolist():  # a single one, unless the draws let several in
        one = fewest.where(place == number)
        sizes[int(one.positions[0])] = Encoded(encode(one), one).size
    too_large = {position: size for position, size in sizes.items() if size > budget}
    if too_large or not sizes:
        nothing = fewest.where(place < 0)
        return Encoded((), nothing, tuple(too_large), min(too_large.values(), default=0))
    number = largest_count(
        len(fewest), budget, lambda m: Encoded(encode(fewest.where(place < m)), fewest).size, 1
    )
    some = fewest.where(place < number)
    return Encoded(encode(some), some)


def _without(select: Selector, dropped: list[int]) -> Selector:
    """Return a selector that never selects some positions."""
    if not dropped:
        return select

    def others(count: float) -> Selection:
        selection = select(count)
        return selection.where(~np.isin(selection.positions, dropped))

    return others
