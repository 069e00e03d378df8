"""Flower's side of a client: an instruction comes in, a payload of quantized samples goes out.

Flower and the clock are known to the message handlers only: here, and in the rivals' clients.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flwr.app import ConfigRecord, Context, Message, RecordDict

from clients.dataset import IndexedDataset
from clients.delivery import SentSamples
from clients.exchange import array_record, config_record, load_model, stored_arrays, timed
from clients.instruction import Instruction
from clients.rounds import Contribution, Task, replay_quota, replay_round, sgd_round
from clients.source import SampleSource, as_source
from codec import CodecError, Criterion

if TYPE_CHECKING:
    from torch import nn

STAGES = ("importance", "encode", "refinement")
SENT_KEY = "quantized-data"
MEMORY_KEY = "refinement-memory"


def train(
    msg: Message,
    context: Context,
    source: SampleSource | IndexedDataset,
    model: "Callable[[], nn.Module] | None" = None,
    criterion: Criterion | None = None,
) -> Message:
    """Answer one round's instruction with quantized samples.

    Parameters
    ----------
    msg : Message
        ``content["config"]``: see `clients.instruction.Instruction`. ``content["arrays"]``:
        the model's state, when it is scored or refined with.
    context : Context
        ``node_config["partition-id"]`` (default 0) keys the client's random numbers;
        ``state`` remembers what was sent and the refinement's error memory.
    source : SampleSource or map-style data set
        The client's samples; see `clients.source.as_source`.
    model : callable, optional
        Factory of the model whose state the server sends. Without scores and refinement it
        is never called, and torch is not imported.
    criterion : callable, optional
        Loss for the refinement; must be the server's. Default: cross-entropy, or mean
        squared error for float targets.

    Returns
    -------
    Message
        ``content["payload"]`` with ``samples`` (payload bytes, empty when nothing is sent),
        ``refinement`` (bytes, if asked for), ``num-examples``, ``num-sent``, ``remaining``,
        ``client``, ``memory-bytes`` (of the refinement's error memory) and ``seconds-*``.

    Raises
    ------
    CodecError
        On an illegal instruction, sample or model; names the value and what is legal.
    """
    instruction = Instruction.from_record(config_record(msg))
    seconds = dict.fromkeys(STAGES, 0.0)
    task = Task(
        instruction,
        int(context.node_config.get("partition-id", 0)),
        as_source(source),
        stage=lambda name: timed(name, seconds),
    )
    if instruction.needs_model:
        if model is None:
            raise CodecError("the instruction scores or refines with a model: pass model=<factory>")
        loaded = load_model(model, msg.content.get("arrays"))
        task = replace(task, model=loaded, criterion=criterion)
    run = _replay if instruction.mode == "replay" else _sgd
    contribution, remaining = run(task, context.state)
    answer: dict[str, Any] = {
        "samples": contribution.data,
        "num-examples": contribution.considered,
        "num-sent": len(contribution.sent),
        "remaining": remaining,
        "client": task.client,
        "memory-bytes": sum(part.nbytes for part in contribution.memory or ()),
        **{f"seconds-{name}": value for name, value in seconds.items()},
    }
    if contribution.refinement is not None:
        answer["refinement"] = contribution.refinement
    return Message(RecordDict({"payload": ConfigRecord(answer)}), reply_to=msg)


def _sgd(task: Task, state: RecordDict) -> tuple[Contribution, int]:
    contribution = sgd_round(task, stored_arrays(state.get(MEMORY_KEY)))
    if contribution.memory is not None:
        state[MEMORY_KEY] = array_record(contribution.memory)
    return contribution, len(task.source)


def _replay(task: Task, state: RecordDict) -> tuple[Contribution, int]:
    length, instruction = len(task.source), task.instruction
    record, before = state.get(SENT_KEY), SentSamples.none(length)
    if isinstance(record, ConfigRecord):
        before = SentSamples.from_entries(record, length)
    settled = before.settle(instruction.acknowledged)
    contribution = replay_round(task, settled.delivered)
    after = settled.send(contribution.sent, instruction.server_round)
    entries: dict[str, Any] = after.to_entries()
    state[SENT_KEY] = ConfigRecord(entries)
    return contribution, after.remaining(replay_quota(length, instruction.keep_rate))
