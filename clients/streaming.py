"""The client's side of streaming: a minibatch, filtered, quantized and refined, in every round."""

from dataclasses import replace
from typing import Any, cast

import numpy as np
from flwr.app import ConfigRecord, RecordDict
from numpy.typing import NDArray

from clients.arrays import array_record, stored_arrays
from clients.budget import encode_within_budget
from clients.candidates import Candidates, draw_minibatch
from clients.client_round import TOO_LARGE, ClientRound, Contribution
from clients.importance import needs_features
from clients.memory import pack_flags, unpack_flags
from clients.refinement import ForwardPass, forward_pass, gradient_residual
from clients.selection import Selection
from codec import DecodedSamples, dropout_seed, per_sample_criterion
from codec.messages import StreamingRequest
from codec.random import Stream

MEMORY_KEY, USELESS_KEY = "refinement-memory", "useless-samples"

Round = ClientRound[StreamingRequest]


def answer_streaming(work: Round, state: RecordDict) -> Contribution:
    """Send a minibatch, and remember what its refinement left unsent.

    Parameters
    ----------
    work : ClientRound
    state : RecordDict
        The client's own; keeps the compressor's error memory, and which samples are of no use.

    Returns
    -------
    Contribution
        All samples are left, as they may be asked for again.
    """
    length, record = len(work.source), state.get(USELESS_KEY)
    known = record if isinstance(record, ConfigRecord) else None
    useless = unpack_flags(cast(bytes, known["useless"]) if known else b"", length)
    contribution = streaming_round(work, stored_arrays(state.get(MEMORY_KEY)), useless)
    if contribution.memory is not None:
        state[MEMORY_KEY] = array_record(contribution.memory)
    if known is None:  # told once
        contribution.skipped.update(work.skipped_before)
    if contribution.useless or contribution.skipped:
        useless[list(contribution.useless)] = True
        state[USELESS_KEY] = ConfigRecord({"useless": pack_flags(useless)})
    return replace(contribution, remaining=length)


def streaming_round(
    work: Round,
    memory: list[NDArray[np.float32]] | None = None,
    useless: NDArray[np.bool_] | None = None,
) -> Contribution:
    """Draw a minibatch, keep what matters, quantize it, and compress what that misses.

    Parameters
    ----------
    work : ClientRound
    memory : list of float32 arrays or None
        Error memory that the previous round returned.
    useless : (N,) bool array, optional
        What earlier rounds found to be of no use: not drawn.

    Raises
    ------
    CodecError
        If not one sample of the client can be used; with what is wrong.
    """
    request, rng = work.request, work.generator()
    order = draw_minibatch(len(work.source), len(work.source), rng)
    if useless is not None:
        order = order[~useless[order]]
    if not len(order):
        return Contribution(memory=memory)
    work.check()
    candidates = Candidates(work.reader, order)
    samples, targets = candidates.first(request.batch_size)
    candidates.check_any_left()
    original = _forward(work, samples, targets)
    outputs = None if original is None else original.outputs
    select = work.selector(samples, targets, rng, outputs)
    encoder = work.encoder(by_label=False, like=samples if request.uplink_budget else None)

    def encode(selection: Selection) -> tuple[bytes, ...]:
        return encoder.encode(samples, targets, selection)

    with work.stage("encode"):
        encoded = encode_within_budget(
            select, encode, request.keep_rate * len(samples), request.uplink_budget
        )
        encoded.check_any_fits(request.uplink_budget)
        positions = encoded.selection.positions
        kept = encoder.variance_kept(samples[positions])
    # They are drawn again: a later budget may let them through.
    candidates.skipped.update({TOO_LARGE: len(encoded.too_large)} if encoded.too_large else {})
    contribution = Contribution(
        encoded.payloads,
        len(samples),
        candidates.order[positions],
        memory=memory,
        variance_kept=kept,
        clipped=candidates.clipped,
        skipped=candidates.skipped,
        useless=tuple(candidates.useless),
    )
    if original is None:
        return contribution
    with work.stage("refinement"):
        decoded = encoder.reconstruct(samples, targets, encoded.selection)
        return _refine(work, contribution, original, decoded)


def _refine(
    work: Round,
    contribution: Contribution,
    original: ForwardPass,
    kept: DecodedSamples,
) -> Contribution:
    """Add the compressed residual, if there is one worth sending."""
    assert work.model is not None
    residual, gradient = gradient_residual(
        work.model,
        per_sample_criterion(work.criterion),
        original,
        kept,
        spec=work.spec,
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
            spec=work.spec,
            scale=work.request.scale,
            seed=_dropout_seed(work),
            record=work.request.needs_scores,
            features=needs_features(work.request.importance),
        )


def _dropout_seed(work: Round) -> int:
    """Return the seed of the dropout masks of the round's gradients."""
    return dropout_seed(work.request.seed, work.request.server_round, work.client)
