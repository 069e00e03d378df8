"""The client's side of streaming: a minibatch, filtered, quantized and refined, in every round."""

from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from clients.arrays import array_record, stored_arrays
from clients.budget import encode_within_budget
from clients.candidates import draw_minibatch
from clients.client_round import ClientRound, Contribution
from clients.importance import needs_features
from clients.refinement import ForwardPass, forward_pass, gradient_residual
from clients.selection import Selection
from codec import DecodedSamples, SampleSpec, dropout_seed, per_sample_criterion
from codec.messages import StreamingRequest
from codec.random import Stream

MEMORY_KEY = "refinement-memory"

Round = ClientRound[StreamingRequest]


def answer_streaming(work: Round, state: RecordDict) -> tuple[Contribution, int]:
    """Send a minibatch, and remember what its refinement left unsent.

    Parameters
    ----------
    work : ClientRound
    state : RecordDict
        The client's own; keeps the compressor's error memory.

    Returns
    -------
    Contribution, int
        And the number of samples that may be asked for again: all of them.
    """
    contribution = streaming_round(work, stored_arrays(state.get(MEMORY_KEY)))
    if contribution.memory is not None:
        state[MEMORY_KEY] = array_record(contribution.memory)
    return contribution, len(work.source)


def streaming_round(work: Round, memory: list[NDArray[np.float32]] | None = None) -> Contribution:
    """Draw a minibatch, keep what matters, quantize it, and compress what that misses.

    Parameters
    ----------
    work : ClientRound
    memory : list of float32 arrays or None
        Error memory that the previous round returned.
    """
    request, rng = work.request, work.generator()
    indices = draw_minibatch(len(work.source), request.batch_size, rng)
    if len(indices) == 0:
        return Contribution()
    spec = work.spec()
    batch = work.reader.read(indices)
    samples, targets, indices = batch.samples, batch.targets, indices[batch.positions]
    contribution = Contribution(memory=memory, clipped=batch.clipped, skipped=batch.skipped)
    if len(indices) == 0:
        return contribution
    original = _forward(work, samples, targets, spec)
    outputs = None if original is None else original.outputs
    select = work.selector(samples, targets, rng, outputs)
    encoder = work.encoder(by_label=False)

    def encode(selection: Selection) -> tuple[bytes, ...]:
        return encoder.encode(samples, targets, selection)

    with work.stage("encode"):
        encoded = encode_within_budget(
            select, encode, request.keep_rate * len(indices), request.uplink_budget
        )
        contribution = replace(
            contribution,
            payloads=encoded.payloads,
            considered=len(indices),
            sent=indices[encoded.selection.positions],
            variance_kept=encoder.variance_kept(samples, encoded.selection),
        )
    if original is None:
        return contribution
    with work.stage("refinement"):
        kept = encoder.reconstruct(samples, targets, encoded.selection)
        return _refine(work, contribution, original, kept, spec)


def _refine(
    work: Round,
    contribution: Contribution,
    original: ForwardPass,
    kept: DecodedSamples,
    spec: SampleSpec,
) -> Contribution:
    """Add the compressed residual, if there is one worth sending."""
    assert work.model is not None
    residual, gradient = gradient_residual(
        work.model,
        per_sample_criterion(work.criterion),
        original,
        kept,
        spec=spec,
        scale=work.request.scale,
        seed=_dropout_seed(work),
    )
    compressor = work.request.refinement.choose(residual, gradient)
    if compressor is None:
        return contribution
    rng = work.generator(Stream.COMPRESSOR)
    refinement, memory = compressor.compress(residual, contribution.memory, rng)
    return replace(contribution, refinement=refinement, memory=memory)


def _forward(
    work: Round,
    samples: NDArray[Any],
    targets: NDArray[Any],
    spec: SampleSpec,
) -> ForwardPass | None:
    """Run the model over the minibatch if a residual will be taken."""
    if work.model is None or not work.request.refinement:
        return None
    with work.stage("refinement"):
        return forward_pass(
            work.model,
            per_sample_criterion(work.criterion),
            samples,
            targets,
            spec=spec,
            scale=work.request.scale,
            seed=_dropout_seed(work),
            record=work.request.needs_scores,
            features=needs_features(work.request.importance),
        )


def _dropout_seed(work: Round) -> int:
    """Return the seed of the dropout masks of the round's gradients."""
    return dropout_seed(work.request.seed, work.request.server_round, work.client)
