"""One round of a client, from instruction to payload bytes, in both modes; no Flower here."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clients.budget import Encoder, encode_within_budget
from clients.candidates import Candidates, draw_minibatch
from clients.importance import ModelOutputs, model_outputs, score
from clients.instruction import Instruction
from clients.refinement import ForwardPass, forward_pass, gradient_residual
from clients.selection import FIRST_TRIED, Selection, Selector, make_selector, whole
from clients.source import SampleSource, fetch, source_spec
from codec import (
    Criterion,
    DecodedSamples,
    SampleSpec,
    dropout_seed,
    generator,
    per_sample_criterion,
)

if TYPE_CHECKING:
    from torch import nn

_COMPRESSOR_STREAM = 1  # last key of the generator beside the main one


def _untimed(_: str) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True)
class Task:
    """What a client works with in one round.

    Attributes
    ----------
    instruction : Instruction
    client : int
        Partition id, >= 0; with the run's seed and the round it keys all random numbers.
    source : SampleSource
    model : torch.nn.Module or None
        With the server's state loaded; None when the instruction needs none.
    criterion : callable or None
        Loss for the refinement; see `codec.per_sample_criterion`.
    stage : callable
        From ``"importance"``, ``"encode"`` or ``"refinement"`` to a context that the stage
        runs in; a caller with a clock times it.
    """

    instruction: Instruction
    client: int
    source: SampleSource
    model: "nn.Module | None" = None
    criterion: Criterion | None = None
    stage: Callable[[str], AbstractContextManager[None]] = _untimed

    def generator(self, *stream: int) -> np.random.Generator:
        """Return the client's generator of this round, or of a side stream (>= 1)."""
        return generator(self.instruction.seed, self.instruction.server_round, self.client, *stream)

    def spec(self) -> SampleSpec:
        """Return the spec of the round's payload."""
        return source_spec(self.source, self.instruction.codec)

    def encoder(self, spec: SampleSpec, by_label: bool) -> Encoder:
        """Return the round's encoder."""
        key = (self.instruction.seed, self.client, self.instruction.server_round)
        return Encoder(spec, key, by_label)

    def selector(
        self,
        samples: NDArray[Any],
        targets: NDArray[Any],
        spec: SampleSpec,
        rng: np.random.Generator,
        outputs: ModelOutputs | None = None,
    ) -> Selector:
        """Score candidates, or take them as equal, and return the instruction's selector.

        Outputs that are at hand are used; else the model is run.
        """
        instruction, scores = self.instruction, np.ones(len(samples))
        if instruction.needs_scores and self.model is not None:
            with self.stage("importance"):
                if outputs is None:
                    outputs = model_outputs(self.model, samples, low=spec.low, high=spec.high)
                scores = score(instruction.importance, outputs, targets)
        return make_selector(instruction.selection, scores, instruction.uniform_share, rng)

    def forward(
        self, samples: NDArray[Any], targets: NDArray[Any], spec: SampleSpec
    ) -> ForwardPass | None:
        """Run the model over the minibatch if a residual will be taken."""
        if self.model is None or not self.instruction.residual:
            return None
        with self.stage("refinement"):
            return forward_pass(
                self.model,
                per_sample_criterion(self.criterion),
                samples,
                targets,
                spec=spec,
                seed=self.dropout_seed(),
                record=self.instruction.needs_scores,
            )

    def dropout_seed(self) -> int:
        """Return the seed of the dropout masks of the round's gradients."""
        return dropout_seed(self.instruction.seed, self.instruction.server_round, self.client)


@dataclass(frozen=True)
class Contribution:
    """What a client sends in one round.

    Attributes
    ----------
    data : bytes
        Sample payload; empty when nothing is sent.
    considered : int
        Size of the original minibatch (sgd) or of the pool chosen from (replay).
    sent : (M,) int64 array
        Indices of the samples in `data`, into the source.
    refinement : bytes or None
        Compressed gradient residual.
    memory : list of float32 arrays or None
        Error memory of the compressor, for the next round.
    """

    data: bytes
    considered: int
    sent: NDArray[np.int64]
    refinement: bytes | None = None
    memory: list[NDArray[np.float32]] | None = None


_NOTHING = Contribution(b"", 0, np.zeros(0, np.int64))


def sgd_round(task: Task, memory: list[NDArray[np.float32]] | None = None) -> Contribution:
    """Draw a minibatch, keep what matters, quantize it, and compress what that misses.

    Parameters
    ----------
    task : Task
    memory : list of float32 arrays or None
        Error memory that the previous round returned.
    """
    instruction, rng = task.instruction, task.generator()
    indices = draw_minibatch(len(task.source), instruction.batch_size, rng)
    if len(indices) == 0:
        return _NOTHING
    spec = task.spec()
    samples, targets = fetch(task.source, indices, spec)
    original = task.forward(samples, targets, spec)
    outputs = None if original is None else original.outputs
    select = task.selector(samples, targets, spec, rng, outputs)
    share = 1.0 if instruction.selection == "budget" else instruction.keep_rate
    encoder = task.encoder(spec, by_label=False)

    def encode(selection: Selection) -> bytes:
        return encoder.encode(samples, targets, selection)

    with task.stage("encode"):
        encoded = encode_within_budget(
            select, encode, share * len(indices), instruction.uplink_budget
        )
    sent = indices[encoded.selection.positions]
    contribution = Contribution(encoded.data, len(indices), sent, memory=memory)
    if original is None:
        return contribution
    with task.stage("refinement"):
        kept = encoder.reconstruct(samples, targets, encoded.selection)
        return _refine(task, contribution, original, kept, spec)


def _refine(
    task: Task,
    contribution: Contribution,
    original: ForwardPass,
    kept: DecodedSamples,
    spec: SampleSpec,
) -> Contribution:
    """Add the compressed residual, if there is one worth sending."""
    assert task.model is not None
    residual, gradient = gradient_residual(
        task.model,
        per_sample_criterion(task.criterion),
        original,
        kept,
        spec=spec,
        seed=task.dropout_seed(),
    )
    compressor = task.instruction.residual.choose(residual, gradient)
    if compressor is None:
        return contribution
    rng = task.generator(_COMPRESSOR_STREAM)
    refinement, memory = compressor.compress(residual, contribution.memory, rng)
    return replace(contribution, refinement=refinement, memory=memory)


def replay_quota(length: int, keep_rate: float) -> int:
    """Return how many of `length` samples a client ever sends: the rounded share, at least 1."""
    return min(length, max(1, round(keep_rate * length)))


def replay_round(task: Task, sent: NDArray[np.bool_]) -> Contribution:
    """Send the most useful of the samples that were never sent.

    Parameters
    ----------
    task : Task
    sent : (N,) bool array
        What earlier rounds sent.
    """
    instruction, rng = task.instruction, task.generator()
    left = replay_quota(len(sent), instruction.keep_rate) - int(sent.sum())
    wanted = min(left, instruction.batch_size or left)
    if wanted <= 0:
        return _NOTHING
    spec, budget = task.spec(), instruction.uplink_budget
    order = rng.permutation(np.flatnonzero(~sent))
    candidates = Candidates(task.source, spec, order)
    encoder = task.encoder(spec, by_label=True)

    def encode(selection: Selection) -> bytes:
        needed = int(selection.positions.max(initial=-1)) + 1
        return encoder.encode(*candidates.first(needed), selection)

    select: Selector = _first
    pool, start = 0, FIRST_TRIED
    if instruction.needs_scores:
        with task.stage("encode"):
            unscored = encode_within_budget(_first, encode, wanted, budget) if budget else None
        likely = wanted if unscored is None else len(unscored.selection)
        pool = min(len(order), math.ceil(instruction.pool_factor * likely))
        select = task.selector(*candidates.first(pool), spec, rng)
        wanted, start = min(wanted, pool), likely
    with task.stage("encode"):
        encoded = encode_within_budget(select, encode, wanted, budget, start)
    positions = encoded.selection.positions
    return Contribution(encoded.data, pool or len(positions), order[positions])


def _first(count: float) -> Selection:
    """Select the first candidates; a random selection when their order is random."""
    return Selection(np.arange(whole(count)))
