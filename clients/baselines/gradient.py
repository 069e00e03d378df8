"""A client that sends the compressed gradient of its minibatch: the rival of sending data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from numpy.typing import NDArray

from clients.baselines.minibatches import Minibatches
from clients.dataset import IndexedDataset
from clients.exchange import array_record, config_record, load_model, stored_arrays, timed
from clients.source import SampleSource
from clients.training_instruction import TrainingInstruction
from codec import Augmentation, Criterion, generator, losses_gradient
from codec.gradients.gradient_options import GradientOptions

if TYPE_CHECKING:
    from torch import nn

Arrays = list[NDArray[np.float32]]

RESIDUAL_KEY, VELOCITY_KEY = "gradient-residual", "gradient-velocity"
_COMPRESSOR_STREAM = 1


@dataclass(frozen=True, kw_only=True)
class GradientInstruction(TrainingInstruction):
    """One round's instruction to send a gradient.

    Attributes
    ----------
    momentum_correction, majority_vote : float, bool
        See `codec.gradients.gradient_options.GradientOptions`.

    Raises
    ------
    CodecError
        On an illegal value, or options that contradict each other.
    """

    momentum_correction: float = 0.0
    majority_vote: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.options  # contradictions are found here

    @property
    def options(self) -> GradientOptions:
        """How the gradient is sent."""
        return GradientOptions(self.compression, self.majority_vote, self.momentum_correction)


@dataclass(frozen=True)
class GradientMemory:
    """What a client keeps between rounds.

    Attributes
    ----------
    residual : list of float32 arrays or None
        Memory of the compressor's error feedback.
    velocity : list of float32 arrays or None
        Momentum correction.
    """

    residual: Arrays | None = None
    velocity: Arrays | None = None

    @classmethod
    def from_state(cls, state: RecordDict) -> "GradientMemory":
        """Read what `to_state` wrote; empty at first."""
        return cls(*(stored_arrays(state.get(key)) for key in (RESIDUAL_KEY, VELOCITY_KEY)))

    def to_state(self, state: RecordDict) -> None:
        """Keep the memory in a client's state."""
        for key, arrays in ((RESIDUAL_KEY, self.residual), (VELOCITY_KEY, self.velocity)):
            if arrays is not None:
                state[key] = array_record(arrays)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return sum(
            part.nbytes for arrays in (self.residual, self.velocity) for part in arrays or ()
        )


def train_gradient(
    msg: Message,
    context: Context,
    source: SampleSource | IndexedDataset,
    model: "Callable[[], nn.Module]",
    criterion: Criterion | None = None,
    augment: Augmentation | None = None,
) -> Message:
    """Answer one round's instruction with the compressed gradient of a minibatch.

    Parameters
    ----------
    msg : Message
        ``content["config"]``: see `GradientInstruction`. ``content["arrays"]``: the model.
    context : Context
        ``node_config["partition-id"]`` (default 0) keys the client's random numbers;
        ``state`` keeps error feedback and velocity.
    source : SampleSource or map-style data set
        The client's samples; see `clients.source.as_source`.
    model : callable
        Factory of the model whose state the server sends.
    criterion : callable, optional
        Default: cross-entropy, or mean squared error for float targets.
    augment : callable, optional
        ``(samples, torch.Generator) -> samples`` on the minibatch, scaled to [0, 1].

    Returns
    -------
    Message
        ``content["payload"]`` with ``gradient`` (bytes), ``num-examples``, ``client``,
        ``memory-bytes``, ``seconds-*`` and, if asked for and there is batch normalization,
        ``buffers`` (its statistics, in float16).

    Raises
    ------
    CodecError
        On an illegal instruction, sample or model, or a gradient that is not finite.
    """
    instruction = GradientInstruction.from_record(config_record(msg))
    client = int(context.node_config.get("partition-id", 0))
    batches = Minibatches.of(instruction, client, source, criterion, augment)
    seconds: dict[str, float] = {}
    network = load_model(model, msg.content.get("arrays"))
    with timed("gradient", seconds):
        losses = batches.losses(network, instruction.server_round - 1)
        parts = losses_gradient(network, losses, np.ones(len(losses), np.float32), len(losses))
        gradient = [part.float().cpu().numpy() for part in parts]
    with timed("compress", seconds):
        rng = generator(instruction.seed, instruction.server_round, client, _COMPRESSOR_STREAM)
        before = GradientMemory.from_state(context.state)
        data, memory = compress_gradient(gradient, instruction, before, rng)
    answer: dict[str, Any] = {
        "gradient": data,
        "num-examples": len(losses),
        "client": client,
        "memory-bytes": memory.nbytes,
    }
    with timed("gradient", seconds):
        answer |= batches.buffers(network, instruction)
    memory.to_state(context.state)
    answer |= {f"seconds-{name}": value for name, value in seconds.items()}
    return Message(RecordDict({"payload": ConfigRecord(answer)}), reply_to=msg)


def compress_gradient(
    gradient: Sequence[NDArray[np.float32]],
    instruction: GradientInstruction,
    memory: GradientMemory,
    rng: np.random.Generator,
) -> tuple[bytes, GradientMemory]:
    """Return a gradient as bytes, and the memory for the next one.

    With momentum correction m, the velocity ``u = m * u + gradient`` takes the gradient's place.
    For "top-k" that is deep gradient compression (Lin et al., ICLR 2018, section 3.2): the error
    feedback sums velocities, and where a coordinate was sent its velocity starts anew (momentum
    factor masking). For majority vote it is Signum (Bernstein et al., ICLR 2019, algorithm 1).

    Parameters
    ----------
    gradient : sequence of float32 arrays
    instruction : GradientInstruction
    memory : GradientMemory
        Not modified.
    rng : numpy.random.Generator
        Randomness of the compressor.

    Raises
    ------
    CodecError
        If a value is not finite, or the memory does not fit.
    """
    update, velocity = list(gradient), None
    if instruction.momentum_correction:
        velocity = memory.velocity or [np.zeros_like(part) for part in gradient]
        pairs = zip(velocity, gradient, strict=True)
        update = velocity = [instruction.momentum_correction * v + g for v, g in pairs]
    compressor = instruction.options.compressor()
    data, residual = compressor.compress(update, memory.residual, rng)
    if velocity is not None and not instruction.majority_vote:
        sent = compressor.decompress(data, [part.shape for part in gradient])
        velocity = [np.where(s != 0, np.float32(0), v) for s, v in zip(sent, velocity, strict=True)]
    return data, GradientMemory(residual, velocity)
