"""A client that trains a model on its own samples: federated averaging."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from numpy.typing import NDArray

from clients.baselines.minibatches import Minibatches
from clients.dataset import IndexedDataset
from clients.exchange import (
    array_record,
    config_record,
    load_model,
    require_range,
    stored_arrays,
    timed,
)
from clients.source import SampleSource
from clients.training_instruction import TrainingInstruction
from codec import Augmentation, CodecError, Criterion, generator
from codec.gradients.joined import joined

if TYPE_CHECKING:
    from torch import Tensor, nn

RESIDUAL_KEY = "delta-residual"
_COMPRESSOR_STREAM = 1


@dataclass(frozen=True, kw_only=True)
class LocalInstruction(TrainingInstruction):
    """One round's instruction to train locally.

    Attributes
    ----------
    local_steps : int
        Minibatch steps of SGD, >= 1.
    learning_rate : float
        Of all of them, >= 0.
    momentum : float
        In [0, 1), Nesterov's; starts anew in every round.
    weight_decay : float
        >= 0.

    Raises
    ------
    CodecError
        On an illegal value; names what is legal.
    """

    local_steps: int
    learning_rate: float
    momentum: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("local-steps", self.local_steps, 1)
        require_range("learning-rate", self.learning_rate, 0)
        require_range("weight-decay", self.weight_decay, 0)
        if not 0 <= self.momentum < 1:
            raise CodecError(f"momentum = {self.momentum} outside [0, 1)")


def train_local(
    msg: Message,
    context: Context,
    source: SampleSource | IndexedDataset,
    model: "Callable[[], nn.Module]",
    criterion: Criterion | None = None,
    augment: Augmentation | None = None,
) -> Message:
    """Answer one round's instruction with a locally trained model, or its compressed change.

    Parameters
    ----------
    msg : Message
        ``content["config"]``: see `LocalInstruction`. ``content["arrays"]``: the model.
    context : Context
        ``node_config["partition-id"]`` (default 0) keys the client's random numbers;
        ``state`` keeps the compressor's error feedback.
    source, model, criterion, augment
        See `clients.train_gradient`.

    Returns
    -------
    Message
        ``content["payload"]`` with ``num-examples`` (all the client has), ``client``,
        ``memory-bytes`` and ``seconds-*``. Uncompressed, ``content["arrays"]`` is the model's
        state; else the payload has ``delta`` (bytes, the change of the trainable parameters) and,
        if asked for and there is batch normalization, ``buffers`` (its statistics, in float16).

    Raises
    ------
    CodecError
        On an illegal instruction, sample or model, or a change that is not finite.
    """
    instruction = LocalInstruction.from_record(config_record(msg))
    client = int(context.node_config.get("partition-id", 0))
    batches = Minibatches.of(instruction, client, source, criterion, augment)
    seconds: dict[str, float] = {}
    network = load_model(model, msg.content.get("arrays"))
    before = [parameter.clone() for parameter in _trained(network)]
    with timed("train", seconds):
        local_steps(network, batches, instruction)
    content = RecordDict()
    answer: dict[str, Any] = {"num-examples": len(batches.source), "client": client}
    if not instruction.compression:
        content["arrays"] = ArrayRecord(network.state_dict())
    else:
        with timed("compress", seconds):
            pairs = zip(_trained(network), before, strict=True)
            delta = [(after - old).float().cpu().numpy() for after, old in pairs]
            answer |= _compressed(delta, instruction, client, context.state)
        with timed("train", seconds):
            answer |= batches.buffers(network, instruction)
    answer |= {f"seconds-{name}": value for name, value in seconds.items()}
    content["payload"] = ConfigRecord(answer)
    return Message(content, reply_to=msg)


def local_steps(model: "nn.Module", batches: Minibatches, instruction: LocalInstruction) -> None:
    """Take a round's steps of SGD on a model, in place."""
    from torch.optim import SGD

    optimizer = SGD(
        [p for p in model.parameters() if p.requires_grad],
        instruction.learning_rate,
        instruction.momentum,
        weight_decay=instruction.weight_decay,
        nesterov=instruction.momentum > 0,
    )
    first = (instruction.server_round - 1) * instruction.local_steps
    for step in range(first, first + instruction.local_steps):
        loss = batches.losses(model, step).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's has no types
        optimizer.step()


def _trained(model: "nn.Module") -> "list[Tensor]":
    return [parameter.detach() for parameter in model.parameters() if parameter.requires_grad]


def _compressed(
    delta: list[NDArray[np.float32]], instruction: LocalInstruction, client: int, state: RecordDict
) -> dict[str, bytes | int]:
    """Return the reply's entries of the model's change, and keep what they leave unsent."""
    compressor = instruction.compression.compressor()
    assert compressor is not None
    before = stored_arrays(state.get(RESIDUAL_KEY))
    rng = generator(instruction.seed, instruction.server_round, client, _COMPRESSOR_STREAM)
    data, residual = joined(compressor).compress(delta, before, rng)
    if residual is not None:
        state[RESIDUAL_KEY] = array_record(residual)
    return {"delta": data, "memory-bytes": sum(part.nbytes for part in residual or ())}
