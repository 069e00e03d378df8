"""One training on one kind of data, as in a Flower project that plugs the strategy in."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from flwr.app import Context, Message
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR

import clients
from codec import CodecOptions
from sim.data_kinds.kinds import Kind
from sim.data_kinds.tasks import Array, Task
from sim.direct_grid import DirectGrid
from sim.in_process import flower_task
from strategies import QuantizedDataReplay

CLIENTS = 4
CODECS = {
    "auto": CodecOptions(),
    "step 0.25": CodecOptions(step=0.25),
    "lossless": CodecOptions("lossless"),
}
_LEARNING_RATE = 0.01  # at its peak
_AROUND = ("message", "description")  # sections of the ledger that are no payloads
_SENT_EACH_ROUND, _STEPS_EACH_ROUND = 100, 100  # the strategy's defaults


@dataclass(frozen=True)
class Run:
    """What one training came to; a line of the raw results.

    Attributes
    ----------
    kind, codec : str
        Key of `CODECS`; ``auto`` stands for the defaults.
    seed : int
        Of the samples, the model and the minibatches.
    score : float
        On samples that were never coded; at most 1.
    samples : int
        That the server received.
    payload_bytes, uplink_bytes : int
        Of the payloads alone, and with the messages around them.
    variance_kept : float
        Share of the samples' variance, as the clients measured it.
    """

    kind: str
    codec: str
    seed: int
    score: float
    samples: int
    payload_bytes: int
    uplink_bytes: int
    variance_kept: float


def measure(kind: Kind, codec: str, seed: int, task: Task) -> Run:
    """Train once.

    Parameters
    ----------
    kind : Kind
    codec : str
        Key of `CODECS`: all that is not the strategy's default.
    seed : int
    task : Task
        What ``kind.make`` returned.
    """
    shares = np.array_split(np.arange(len(task.samples)), CLIENTS)
    parts = [(task.samples[rows], task.targets[rows]) for rows in shares]
    rounds = -(-len(shares[0]) // _SENT_EACH_ROUND)
    steps = rounds * _STEPS_EACH_ROUND
    torch.manual_seed(seed)
    strategy = QuantizedDataReplay(
        kind.network,
        partial(Adam, lr=_LEARNING_RATE),
        kind.criterion,
        partial(OneCycleLR, max_lr=_LEARNING_RATE, total_steps=steps),
        codec=CODECS[codec],
        seed=seed,
        client_key="partition",
    )
    with flower_task(), _one_thread():
        strategy.start(DirectGrid([partial(_answer, parts)] * CLIENTS), num_rounds=rounds)
        score = _score(kind, strategy, task)
    sections = strategy.ledger.sections()
    return Run(
        kind=kind.name,
        codec=codec,
        seed=seed,
        score=score,
        samples=strategy.book.samples_sent,
        payload_bytes=sum(b for name, b in sections.items() if name not in _AROUND),
        uplink_bytes=strategy.ledger.uplink_bytes,
        variance_kept=strategy.book.variance_kept,
    )


def _answer(parts: Sequence[tuple[Array, Array]], message: Message, context: Context) -> Message:
    return clients.train(message, context, parts[int(context.node_config["partition-id"])])


def _score(kind: Kind, strategy: QuantizedDataReplay, task: Task) -> float:
    samples, targets = task.test_samples, torch.as_tensor(task.test_targets)
    if kind.metric == "accuracy":
        return strategy.server_model.evaluate(_readable(samples), targets)[1]
    seen = torch.as_tensor(_readable(samples)).float()
    seen = seen / 255 if samples.dtype == np.uint8 else seen
    with torch.no_grad():
        outputs = strategy.server_model.outputs(seen, training=False)
    return f1(outputs > 0, targets > 0) if kind.metric == "F1" else r_squared(outputs, targets)


def f1(predicted: Tensor, true: Tensor) -> float:
    """Return the F1 score of all labels of all samples together."""
    return float(2 * (predicted & true).sum() / (predicted.sum() + true.sum()))


def r_squared(predicted: Tensor, true: Tensor) -> float:
    """Return the share of the targets' variance that is explained."""
    error = (predicted.reshape(true.shape) - true).square().mean()
    return float(1 - error / true.var(correction=0))


def _readable(samples: Array) -> Array:
    return samples.astype(np.float32) if samples.dtype == np.uint16 else samples


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread: for models this small, waiting for a busy core costs far more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
