"""What a model's batch normalization sees of a client's samples, as they are."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clients.candidates import draw_minibatch
from clients.reading import Reader
from codec import CodecError
from codec.learning.batch_norm import encode_statistics, fresh_statistics, statistics
from codec.learning.forward import device_of, forward
from codec.learning.inputs import model_inputs
from codec.messages import Calibration, CalibrationRequest
from codec.random import Stream, client_generator

if TYPE_CHECKING:
    from torch import nn

_BATCH = 64  # samples that go through the model at a time


def answer_calibration(
    request: CalibrationRequest, model: "nn.Module", reader: Reader, *, key: int, client: int
) -> Calibration:
    """Run the model over some of the samples, and return what its normalization saw.

    Parameters
    ----------
    request : CalibrationRequest
    model : torch.nn.Module
        In the state that the server sent; left in evaluation mode.
    reader : Reader
        Of the client's samples, on the server's terms.
    key : int
        Keys the choice of samples, with seed and round.
    client : int
        The client's own number.

    Raises
    ------
    CodecError
        If there are not two samples, or the model normalizes no batches.
    """
    rng = client_generator(request.seed, request.server_round, key, Stream.STATISTICS)
    indices = draw_minibatch(len(reader.source), request.max_samples, rng)
    found, seen = gather_statistics(model, reader, request.scale, indices, _BATCH)
    if not found:
        raise CodecError(
            f"nothing to calibrate with: {len(indices)} samples (legal: two or more that can be "
            f"used), and a model with {len(statistics(model))} statistics of batch normalization"
        )
    return Calibration(client=client, num_examples=seen, buffers=encode_statistics(found))


def gather_statistics(
    model: "nn.Module", reader: Reader, scale: str, indices: NDArray[np.int64], batch_size: int
) -> tuple[list[NDArray[np.float32]], int]:
    """Return the statistics of batch normalization over samples, without augmentation.

    Parameters
    ----------
    model : torch.nn.Module
        Left in evaluation mode, with those statistics.
    reader : Reader
    scale : str
        What the model sees of samples, see `codec.learning.inputs.model_inputs`.
    indices : int64 (N,)
        Of the samples.
    batch_size : int
        About so many go through the model at a time, at least two: one alone has no variance.

    Returns
    -------
    list of float32 arrays, int
        See `codec.learning.batch_norm.statistics`, and of how many samples; empty without batch
        normalization, or where less than two samples are of any use.
    """
    import torch

    kept, seen = statistics(model), 0
    if not kept or len(indices) < 2:
        return [], 0
    device = device_of(model)
    with torch.no_grad(), fresh_statistics(model):
        for part in np.array_split(indices, max(1, len(indices) // max(2, batch_size))):
            samples = reader.read(part).samples
            if len(samples) > 1:
                forward(model, model_inputs(samples, reader.kind, scale, device))
                seen += len(samples)
    return ([tensor.float().cpu().numpy() for tensor in kept] if seen else []), seen
