"""What cannot be told from a reply alone: whether it is too much of one node, or does not fit."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codec import DecodedSamples, SamplePayload
from codec.learning.inputs import model_inputs
from strategies.received import BadReply
from strategies.received_samples import ReceivedSamples
from strategies.server_model import ServerModel

Payloads = Sequence[tuple[SamplePayload, DecodedSamples]]


class NodeTotals:
    """Samples of each node that are in the bank, and how many it said that it has.

    A node says so when it describes its samples, and in every reply by what it sends and what is
    left; the most that it said first counts, unless its source grows. A node that has lost its
    memory sends again what is there already, all of it perhaps: only what is new to the bank is
    counted, and a node is refused once that is more than its total; by one reply, never by two.
    """

    def __init__(self) -> None:
        self._said: dict[int, int] = {}
        self._kept: Counter[int] = Counter()

    def describe(self, node_id: int, total: int) -> None:
        """Note how many samples a node says that it has."""
        self._said.setdefault(node_id, total)

    def check(self, received: ReceivedSamples) -> None:
        """Raise `BadReply` if a node sends more than it said that it has."""
        node_id, count = received.node_id, received.num_sent
        total = self._said.setdefault(node_id, count + received.remaining)
        kept = self._kept[node_id]
        if received.growing:
            self._said[node_id] = max(total, kept + count + received.remaining)
        elif count > total or (count and kept > total):
            raise BadReply(
                "count", f"{count} samples beside {kept} in the bank, of a node that has {total}"
            )

    def keep(self, node_id: int, samples: int) -> None:
        """Count samples of a node that were new to the bank."""
        self._kept[node_id] += samples


def check_fit(server_model: ServerModel, payloads: Payloads, scale: str) -> None:
    """Show the model what is most unusual in a reply, before it becomes a part of every epoch.

    It sees the samples of the highest and the lowest value, as tokens beyond its vocabulary are,
    and those of the largest target.

    Raises
    ------
    BadReply
        If the model or the criterion fails on them, or their loss is not finite.
    """
    for payload, decoded in payloads:
        rows = _extremes(decoded)
        samples = model_inputs(decoded.samples[rows], payload.spec, scale, server_model.device)
        targets = torch.as_tensor(decoded.targets[rows], device=server_model.device)
        try:
            losses = _losses(server_model, samples, targets)
        except Exception as error:  # of the host's model or criterion: of any type
            raise BadReply("fit", f"{error!s:.200}") from error
        if not torch.isfinite(losses) and _knows_others(server_model, samples, targets):
            raise BadReply("fit", "the model's loss on the samples is not finite")


def _losses(server_model: ServerModel, samples: Tensor, targets: Tensor) -> Tensor:
    with torch.no_grad(), server_model.autocast():
        outputs = server_model.outputs(samples, training=False)
        ones = torch.ones(len(samples), device=server_model.device)
        return server_model.criterion.losses(outputs, targets).mean(ones)


def _extremes(decoded: DecodedSamples) -> NDArray[np.int64]:
    """Return two to four rows: a model may need more than one sample to know a batch."""
    flat = decoded.samples.reshape(len(decoded.samples), -1)
    rows = [int(flat.max(axis=1).argmax()), int(flat.min(axis=1).argmin())]
    if decoded.targets.dtype.kind == "f":
        targets = np.abs(decoded.targets).reshape(len(flat), -1)
        rows.append(int(targets.max(axis=1).argmax()))
    rows.append((rows[0] + 1) % len(flat))
    return np.array(rows, np.int64)


def _knows_others(server_model: ServerModel, samples: Tensor, targets: Tensor) -> bool:
    """Whether the loss is finite on zeros; else the model has diverged, or the criterion is odd."""
    try:
        losses = _losses(server_model, torch.zeros_like(samples), torch.zeros_like(targets))
    except Exception:  # of the host's model or criterion
        return False
    return bool(torch.isfinite(losses))
