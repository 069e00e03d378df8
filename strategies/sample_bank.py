"""What the server has received: coded at rest, decoded while the memory limit allows."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from codec import DecodedSamples, DecodeLimits, SamplePayload, decode_samples
from codec.learning.inputs import Bounds, in_units, mapped_range, sees_floats
from codec.options import COUNT, check
from strategies.server_model import Batch

DEFAULT_MEMORY_LIMIT = 4 << 30
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class _Arrays:
    samples: NDArray[Any]  # (N, *shape) uint8, float32, or integers that stay so
    targets: NDArray[Any]  # (N,) int64, (N,) float32 or (N, t) float32
    weights: NDArray[np.float32]  # (N,)
    bounds: Bounds | None  # range that the model sees as [0, 1]; None: samples are as it sees them

    @property
    def is_float(self) -> bool:
        """Whether the model sees floats."""
        return self.samples.dtype in (np.uint8, np.float32)

    @property
    def kind(self) -> "_Kind":
        """What samples of a bank must have in common."""
        inner = self.targets.shape[1:]
        # Vectors of one float and single floats are the same to a criterion.
        shape = () if inner == (1,) else inner
        return _Kind(self.samples.shape[1:], self.is_float, shape, self.targets.dtype.kind == "f")

    def in_floats(self) -> "_Arrays":
        """Return the samples as float32 as the model sees them."""
        if self.bounds is None:
            return replace(self, samples=self.samples.astype(np.float32, copy=False))
        seen = in_units(torch.tensor(self.samples), self.bounds)
        return replace(self, samples=seen.numpy(), bounds=None)


@dataclass(frozen=True)
class _Kind:
    shape: tuple[int, ...]
    is_float: bool
    target_shape: tuple[int, ...]
    float_targets: bool

    def __str__(self) -> str:
        values = "floats or 8-bit values" if self.is_float else "integers"
        targets = "float targets" if self.float_targets else "class labels"
        return f"{values} of shape {self.shape} with {targets} of shape {self.target_shape}"


@dataclass(frozen=True)
class _Block:
    """Samples that came together, at rest: payload bytes, or arrays given by :meth:`add_arrays`."""

    data: bytes | _Arrays
    count: int


class SampleBank:
    """Pool of received samples from which the server draws minibatches.

    Payloads stay as their bytes. Decoded samples are held in one contiguous array, the *window*:
    all of them while they fit in ``memory_limit``; beyond it the window holds as many payloads as
    fit, in random order, and an epoch goes from window to window.

    Payloads may differ in type, range and codec; shape and kind of targets must agree. Samples of
    uint8 sources are held as uint8 when their codec is biased anyway or lossless; once others come,
    all are held as float32, which keeps an unbiased codec unbiased.

    Parameters
    ----------
    memory_limit : int
        Most bytes of decoded samples in the window. A payload larger than this makes a window of
        its own.
    limits : DecodeLimits
        What one payload may make the decoder allocate.
    scale : str
        What the model sees of samples, see `codec.messages.ClientOptions`.
    """

    def __init__(
        self,
        memory_limit: int = DEFAULT_MEMORY_LIMIT,
        limits: DecodeLimits | None = None,
        *,
        scale: str = "auto",
    ) -> None:
        check("memory_limit", memory_limit, COUNT)
        self.memory_limit = memory_limit
        self.scale = scale
        self._limits = limits or DecodeLimits()
        self._blocks: list[_Block] = []
        self._count = 0
        # None of the first samples, but all that they are. Others are held in the same type and
        # range until some differ; from then on all are held as floats.
        self._first: _Arrays | None = None
        self._holds_floats = False
        # The running epoch: blocks not reached yet, and the window with what is not yet drawn.
        self._queue: list[int] = []
        self._window: list[_Arrays] = []
        self._undrawn = np.empty(0, np.int64)

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """Bytes at rest."""
        return sum(
            len(block.data) if isinstance(block.data, bytes) else block.data.samples.nbytes
            for block in self._blocks
        )

    def add_payload(
        self, payload: bytes | SamplePayload, decoded: DecodedSamples | None = None
    ) -> int:
        """Add a payload.

        Parameters
        ----------
        payload : bytes or SamplePayload
            What the client sent.
        decoded : DecodedSamples, optional
            Its decoded form, if it is at hand already.

        Returns
        -------
        int
            Number of samples added.

        Raises
        ------
        PayloadError
            If the bytes are malformed.
        ValueError
            If shape or kind of targets differ from those of the samples held.
        """
        data = payload if isinstance(payload, bytes) else payload.to_bytes()
        if isinstance(payload, bytes):
            payload = SamplePayload.from_bytes(payload, self._limits)
        self._add(data, self._arrays_of(payload, decoded or decode_samples(payload)))
        return payload.count

    def add_arrays(
        self,
        samples: NDArray[Any],
        targets: NDArray[Any],
        *,
        low: float | None = None,
        high: float | None = None,
        weights: NDArray[np.float32] | None = None,
    ) -> int:
        r"""Add samples that were never coded, such as a central baseline's.

        Parameters
        ----------
        samples : ndarray
            (N, \*shape) uint8, floats, or int32 or int64 tokens; uint8 and float32 are kept by
            reference.
        targets : ndarray
            (N,) labels, or (N,) or (N, t) float targets.
        low, high : float, optional
            Value range that is mapped to [0, 1]. By default uint8 samples are, unless the scale is
            ``none``, and others are not.
        weights : ndarray, optional
            (N,) float32 importance weights; default ones.

        Returns
        -------
        int
            Number of samples added.
        """
        if weights is None:
            weights = np.ones(len(samples), np.float32)
        kind = np.float32 if np.issubdtype(targets.dtype, np.floating) else np.int64
        bounds = None
        if low is not None or high is not None:
            bounds = low or 0.0, 1.0 if high is None else high
        elif samples.dtype == np.uint8 and self.scale != "none":
            bounds = 0.0, 255.0
        if samples.dtype != np.uint8 and (bounds or samples.dtype not in (np.int32, np.int64)):
            samples = samples.astype(np.float32, copy=False)
        arrays = _Arrays(samples, targets.astype(kind), weights, bounds)
        self._add(arrays, arrays)
        return len(samples)

    def minibatches(
        self,
        batch_size: int,
        steps: int,
        generator: np.random.Generator,
        device: torch.device | str = "cpu",
    ) -> Iterator[Batch]:
        r"""Draw minibatches, epoch by epoch without replacement.

        An epoch goes on over calls; samples that arrived in between join it. The last samples of
        an epoch that do not fill a batch are left out of it; a bank smaller than ``batch_size``
        gives batches of the whole bank.

        Parameters
        ----------
        batch_size : int
            Samples per batch, >= 1.
        steps : int
            Number of batches.
        generator : np.random.Generator
            Source of the order.
        device : torch.device or str
            Where the batches are made; uint8 samples travel there as uint8.

        Yields
        ------
        tuple[Tensor, Tensor, Tensor]
            Samples (B, \*shape) as the model sees them, float32 or int64 for tokens; targets;
            weights (B,) float32.
        """
        check("batch_size", batch_size, COUNT)
        if not len(self):
            raise ValueError("the bank is empty: no minibatch can be drawn")
        size = min(batch_size, len(self))
        self._undrawn = generator.permutation(self._undrawn)
        generator.shuffle(self._queue)
        for _ in range(steps):
            yield self._to_batch(self._draw(size, generator), torch.device(device))

    def _add(self, data: bytes | _Arrays, arrays: _Arrays) -> None:
        if self._first is None:
            self._first = _take(arrays, np.empty(0, np.int64))
        first = self._first
        if arrays.kind != first.kind:
            raise ValueError(f"samples do not fit those held: {arrays.kind}, not {first.kind}")
        arrays = replace(
            arrays, targets=arrays.targets.reshape(len(arrays.targets), *first.targets.shape[1:])
        )
        self._blocks.append(_Block(data, len(arrays.samples)))
        self._count += len(arrays.samples)
        same = (arrays.samples.dtype, arrays.bounds) == (first.samples.dtype, first.bounds)
        if first.is_float and not same and not self._holds_floats:
            self._hold_floats()
        if self._bytes_of(self._count) <= self.memory_limit:
            self._extend_window(arrays)
        else:
            self._queue.append(len(self._blocks) - 1)

    def _hold_floats(self) -> None:
        """Hold all samples as float32 from now on; what no longer fits starts a new epoch."""
        self._holds_floats = True
        if self._bytes_of(self._count) > self.memory_limit:
            self._window, self._undrawn, self._queue = [], np.empty(0, np.int64), []
        self._window = [part.in_floats() for part in self._window]

    def _bytes_of(self, count: int) -> int:
        """Bytes of so many samples when they are decoded."""
        assert self._first is not None
        itemsize = _FLOAT_BYTES if self._holds_floats else self._first.samples.itemsize
        return count * math.prod(self._first.samples.shape[1:]) * itemsize

    def _extend_window(self, arrays: _Arrays) -> None:
        held = sum(len(part.weights) for part in self._window)
        self._window.append(arrays.in_floats() if self._holds_floats else arrays)
        self._undrawn = np.append(self._undrawn, held + np.arange(len(arrays.weights)))

    def _draw(self, size: int, generator: np.random.Generator) -> _Arrays:
        """Take the next ``size`` samples of the epoch, over as many windows as it needs."""
        parts: list[_Arrays] = []
        missing = size
        while missing:
            if not len(self._undrawn) and not self._next_window(generator):
                # The epoch is over: its incomplete last batch is left out.
                parts, missing = [], size
                self._start_epoch(generator)
                continue
            taken, self._undrawn = self._undrawn[:missing], self._undrawn[missing:]
            parts.append(_take(self._merged_window(), taken))
            missing -= len(taken)
        return _concatenate(parts)

    def _start_epoch(self, generator: np.random.Generator) -> None:
        if self._bytes_of(self._count) <= self.memory_limit:
            self._undrawn = generator.permutation(len(self))
            return
        self._queue = generator.permutation(len(self._blocks)).tolist()

    def _next_window(self, generator: np.random.Generator) -> bool:
        """Fill the window from the queue up to the memory limit; False at the epoch's end."""
        if not self._queue:
            return False
        self._window, filled = [], 0
        while self._queue:
            block = self._blocks[self._queue[-1]]
            filled += self._bytes_of(block.count)
            if self._window and filled > self.memory_limit:
                break
            self._queue.pop()
            self._extend_window(self._decode(block))
        self._undrawn = generator.permutation(self._undrawn)
        return True

    def _decode(self, block: _Block) -> _Arrays:
        arrays = block.data
        if isinstance(arrays, bytes):
            payload = SamplePayload.from_bytes(arrays, self._limits)
            arrays = self._arrays_of(payload, decode_samples(payload))
        assert self._first is not None
        shape = self._first.targets.shape[1:]
        return replace(arrays, targets=arrays.targets.reshape(block.count, *shape))

    def _arrays_of(self, payload: SamplePayload, decoded: DecodedSamples) -> _Arrays:
        """Return a payload's samples as they are held."""
        spec, samples = payload.spec, decoded.samples
        arrays = _Arrays(samples, decoded.targets, decoded.weights, mapped_range(spec, self.scale))
        if not sees_floats(spec):
            return replace(arrays, samples=np.rint(samples).astype(np.int32))
        # Biased anyway, or exact: rounding what it decodes to costs nothing.
        roundable = spec.sample_codec.lossless or not spec.sample_codec.is_unbiased(spec.codec)
        if spec.dtype == "uint8" and roundable:
            return replace(arrays, samples=np.clip(np.rint(samples), 0, 255).astype(np.uint8))
        return arrays

    def _merged_window(self) -> _Arrays:
        if len(self._window) > 1:
            self._window = [_concatenate(self._window)]
        return self._window[0]

    def _to_batch(self, arrays: _Arrays, device: torch.device) -> Batch:
        samples, targets, weights = (
            torch.from_numpy(part).to(device)
            for part in (arrays.samples, arrays.targets, arrays.weights)
        )
        seen = in_units(samples, arrays.bounds) if arrays.is_float else samples.long()
        return seen, targets, weights


def _take(arrays: _Arrays, index: NDArray[np.int64]) -> _Arrays:
    return _Arrays(
        arrays.samples[index], arrays.targets[index], arrays.weights[index], arrays.bounds
    )


def _concatenate(parts: list[_Arrays]) -> _Arrays:
    if len(parts) == 1:
        return parts[0]
    return _Arrays(
        np.concatenate([part.samples for part in parts]),
        np.concatenate([part.targets for part in parts]),
        np.concatenate([part.weights for part in parts]),
        parts[0].bounds,
    )
