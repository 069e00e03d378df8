"""Minibatches of a client that trains, epoch by epoch without state; no Flower here."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clients.calibration import gather_statistics
from clients.candidates import draw_minibatch
from clients.reading import Reader
from clients.source import SampleSource, as_source
from codec import (
    Augmentation,
    Criterion,
    SampleLosses,
    SampleSpec,
    batch_losses,
    dropout_seed,
    keyed_augmentation,
    per_sample_criterion,
)
from codec.learning.batch_norm import encode_statistics
from codec.learning.forward import device_of
from codec.messages import TrainingRequest
from codec.random import Stream, client_generator

if TYPE_CHECKING:
    from torch import Tensor, nn


def epoch_minibatch(
    length: int, batch_size: int, step: int, seed: int, client: int
) -> NDArray[np.int64]:
    """Return the indices of a client's minibatch at a step.

    Every epoch is a permutation of its own, keyed by (seed, epoch, client), cut into minibatches;
    what is left at its end is not used. The step alone says where that is, so that nothing needs
    to be remembered between rounds. A client that is not asked in some rounds skips their
    minibatches.

    Parameters
    ----------
    length : int
        Samples of the client, >= 1.
    batch_size : int
        Samples drawn; all of them if there are fewer.
    step : int
        Number of the minibatch, from 0.
    seed, client : int

    Returns
    -------
    (min(batch_size, length),) int64 array
    """
    epoch, place = divmod(step, max(1, length // batch_size))
    order = client_generator(seed, epoch, client, Stream.ORDER).permutation(length)
    return order[place * batch_size :][:batch_size].astype(np.int64)


@dataclass(frozen=True)
class Minibatches:
    """Minibatches of one client, and what a model makes of them.

    Attributes
    ----------
    source : SampleSource
        At least one sample.
    client, seed : int
        Key of all random numbers, with the step.
    size : int
        Samples in a minibatch.
    criterion : callable
        Loss of (outputs, targets), one per sample: see `codec.per_sample_criterion`.
    augment : callable, optional
        ``(samples, torch.Generator) -> samples``, on samples as the model sees them.
    scale : str
        What that is, see `codec.learning.inputs.model_inputs`.
    """

    source: SampleSource
    client: int
    seed: int
    size: int
    criterion: Criterion
    augment: Augmentation | None = None
    scale: str = "auto"

    @classmethod
    def of(
        cls,
        request: TrainingRequest,
        client: int,
        source: Any,
        criterion: Criterion | None,
        augment: Augmentation | None,
    ) -> "Minibatches":
        """Return the minibatches that a request asks of a client."""
        return cls(
            as_source(source),
            client,
            request.seed,
            request.batch_size,
            per_sample_criterion(criterion),
            augment,
            request.scale,
        )

    @cached_property
    def reader(self) -> Reader:
        """What reads the samples."""
        return Reader(self.source)

    @cached_property
    def spec(self) -> SampleSpec:
        """Shape and value range of the samples; `CodecError` if there are none."""
        return self.reader.kind

    def losses(self, model: "nn.Module", step: int) -> "Tensor":
        """Return each sample's loss at a step, Tensor (B,), with its graph; see `batch_losses`."""
        return self.batch_losses(model, step).values

    def batch_losses(self, model: "nn.Module", step: int) -> SampleLosses:
        """Return what the criterion says of each sample at a step, with its graph.

        Parameters
        ----------
        model : torch.nn.Module
            Put in train mode; its device is where the work is done.
        step : int
            Number of the minibatch, from 0; also keys augmentation and dropout.
        """
        import torch

        indices = epoch_minibatch(len(self.source), self.size, step, self.seed, self.client)
        batch = self.reader.read(indices)
        samples, targets = batch.samples, batch.targets
        device = device_of(model)
        augment = keyed_augmentation(self.augment, self.seed, step, self.client, device)
        with torch.random.fork_rng():
            torch.manual_seed(dropout_seed(self.seed, step, self.client))
            return batch_losses(
                model,
                self.criterion,
                samples,
                targets,
                spec=self.spec,
                scale=self.scale,
                augment=augment,
            )

    def statistics(
        self, model: "nn.Module", count: int, server_round: int
    ) -> list[NDArray[np.float32]]:
        """Return the statistics of batch normalization over some random minibatches.

        The minibatches are not augmented: the statistics serve samples that are not either.

        Parameters
        ----------
        model : torch.nn.Module
            Left in evaluation mode, with those statistics.
        count : int
            Minibatches; fewer if the client has fewer samples, none if it has a single one.
        server_round : int
            Keys the choice.

        Returns
        -------
        list of float32 arrays
            See `codec.learning.batch_norm.statistics`; empty without batch normalization.
        """
        rng = client_generator(self.seed, server_round, self.client, Stream.STATISTICS)
        indices = draw_minibatch(len(self.source), count * self.size, rng)
        return gather_statistics(model, self.reader, self.scale, indices, self.size)[0]

    def buffers(self, model: "nn.Module", request: TrainingRequest) -> bytes | None:
        """Return the statistics that a reply carries; None if not asked for, or there are none."""
        if not request.buffers:
            return None
        kept = self.statistics(model, request.buffers, request.server_round)
        return encode_statistics(kept) if kept else None
