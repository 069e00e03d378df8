"""What the server has received: coded at rest, decoded while the memory limit allows."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from codec import DecodedSamples, DecodeLimits, SamplePayload, decode_samples
from codec.options import COUNT, check
from strategies.server_model import Batch

DEFAULT_MEMORY_LIMIT = 4 << 30


@dataclass(frozen=True)
class _Arrays:
    samples: NDArray[Any]  # (N, *shape) uint8 or float32
    targets: NDArray[Any]  # (N,) int64 or (N, t) float32
    weights: NDArray[np.float32]  # (N,)


@dataclass(frozen=True)
class _Block:
    """Samples that came together, at rest: payload bytes, or arrays given by :meth:`add_arrays`."""

    data: bytes | _Arrays
    count: int
    nbytes: int  # of the decoded samples


_Format: TypeAlias = tuple[tuple[int, ...], np.dtype[Any], float, float, tuple[int, ...]]


class SampleBank:
    """Pool of received samples from which the server draws minibatches.

    Payloads stay as their bytes. Decoded samples are held in one contiguous array, the *window*:
    all of them while they fit in ``memory_limit``; beyond it the window holds as many payloads as
    fit, in random order, and an epoch goes from window to window. Samples of a uint8 source are
    held as uint8 when their codec is biased anyway or lossless, else as float32, which keeps an
    unbiased codec unbiased.

    Parameters
    ----------
    memory_limit : int
        Most bytes of decoded samples in the window. A payload larger than this makes a window of
        its own.
    limits : DecodeLimits
        What one payload may make the decoder allocate.
    """

    def __init__(
        self, memory_limit: int = DEFAULT_MEMORY_LIMIT, limits: DecodeLimits | None = None
    ) -> None:
        check("memory_limit", memory_limit, COUNT)
        self.memory_limit = memory_limit
        self._limits = limits or DecodeLimits()
        self._blocks: list[_Block] = []
        self._format: _Format | None = None
        self._decoded_bytes = 0
        # The running epoch: blocks not reached yet, and the window with what is not yet drawn.
        self._queue: list[int] = []
        self._window: list[_Arrays] = []
        self._window_bytes = 0
        self._undrawn = np.empty(0, np.int64)

    def __len__(self) -> int:
        return sum(block.count for block in self._blocks)

    @property
    def nbytes(self) -> int:
        """Bytes at rest."""
        return sum(
            len(block.data) if isinstance(block.data, bytes) else block.nbytes
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
            If shape, value range or target size differ from those of the samples held.
        """
        data = payload if isinstance(payload, bytes) else payload.to_bytes()
        if isinstance(payload, bytes):
            payload = SamplePayload.from_bytes(payload, self._limits)
        spec = payload.spec
        arrays = _to_arrays(payload, decoded or decode_samples(payload))
        self._add(data, arrays, spec.low, spec.high)
        return payload.count

    def add_arrays(
        self,
        samples: NDArray[Any],
        targets: NDArray[Any],
        *,
        low: float = 0.0,
        high: float = 1.0,
        weights: NDArray[np.float32] | None = None,
    ) -> int:
        r"""Add samples that were never coded, such as a central baseline's.

        Parameters
        ----------
        samples : ndarray
            (N, \*shape) uint8 or float32, in units of ``[low, high]``; kept by reference.
        targets : ndarray
            (N,) labels or (N, t) float targets.
        low, high : float
            Value range that is scaled to [0, 1].
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
        arrays = _Arrays(samples, targets.astype(kind), weights)
        self._add(arrays, arrays, low, high)
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
            Samples (B, \*shape) float32 scaled to [0, 1], targets, weights (B,) float32.
        """
        check("batch_size", batch_size, COUNT)
        if not len(self):
            raise ValueError("the bank is empty: no minibatch can be drawn")
        size = min(batch_size, len(self))
        self._undrawn = generator.permutation(self._undrawn)
        generator.shuffle(self._queue)
        for _ in range(steps):
            yield self._to_batch(self._draw(size, generator), torch.device(device))

    def _add(self, data: bytes | _Arrays, arrays: _Arrays, low: float, high: float) -> None:
        samples = arrays.samples
        new = (samples.shape[1:], samples.dtype, low, high, arrays.targets.shape[1:])
        if self._format is not None and new != self._format:
            raise ValueError(f"samples of format {new} do not fit those held, {self._format}")
        self._format = new
        self._blocks.append(_Block(data, len(samples), samples.nbytes))
        self._decoded_bytes += samples.nbytes
        if self._decoded_bytes <= self.memory_limit:
            self._extend_window(arrays)
        else:
            self._queue.append(len(self._blocks) - 1)

    def _extend_window(self, arrays: _Arrays) -> None:
        held = sum(len(part.weights) for part in self._window)
        self._window.append(arrays)
        self._window_bytes += arrays.samples.nbytes
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
        if self._decoded_bytes <= self.memory_limit:
            self._undrawn = generator.permutation(len(self))
            return
        self._queue = generator.permutation(len(self._blocks)).tolist()

    def _next_window(self, generator: np.random.Generator) -> bool:
        """Fill the window from the queue up to the memory limit; False at the epoch's end."""
        if not self._queue:
            return False
        self._window, self._window_bytes = [], 0
        while self._queue:
            block = self._blocks[self._queue[-1]]
            if self._window and self._window_bytes + block.nbytes > self.memory_limit:
                break
            self._queue.pop()
            self._extend_window(self._decode(block))
        self._undrawn = generator.permutation(self._undrawn)
        return True

    def _decode(self, block: _Block) -> _Arrays:
        if not isinstance(block.data, bytes):
            return block.data
        payload = SamplePayload.from_bytes(block.data, self._limits)
        return _to_arrays(payload, decode_samples(payload))

    def _merged_window(self) -> _Arrays:
        if len(self._window) > 1:
            self._window = [_concatenate(self._window)]
        return self._window[0]

    def _to_batch(self, arrays: _Arrays, device: torch.device) -> Batch:
        assert self._format is not None
        _, _, low, high, _ = self._format
        samples, targets, weights = (
            torch.from_numpy(part).to(device)
            for part in (arrays.samples, arrays.targets, arrays.weights)
        )
        return samples.float().sub_(low).div_(high - low), targets, weights


def _to_arrays(payload: SamplePayload, decoded: DecodedSamples) -> _Arrays:
    samples: NDArray[Any] = decoded.samples
    codec = payload.spec.sample_codec
    # Biased anyway, or exact: rounding what it decodes to costs nothing.
    roundable = codec.lossless or not codec.is_unbiased(payload.spec.codec)
    if payload.spec.dtype == "uint8" and roundable:
        samples = np.clip(np.rint(samples), 0, 255).astype(np.uint8)
    return _Arrays(samples, decoded.targets, decoded.weights)


def _take(arrays: _Arrays, index: NDArray[np.int64]) -> _Arrays:
    return _Arrays(arrays.samples[index], arrays.targets[index], arrays.weights[index])


def _concatenate(parts: list[_Arrays]) -> _Arrays:
    if len(parts) == 1:
        return parts[0]
    return _Arrays(
        np.concatenate([part.samples for part in parts]),
        np.concatenate([part.targets for part in parts]),
        np.concatenate([part.weights for part in parts]),
    )
