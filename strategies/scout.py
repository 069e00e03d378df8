"""The server's side of scouts: one is trained on the bank beside the model, and sent to the nodes.

A scout (`codec.learning.scout`) stands in for the model where clients score their samples, in
kilobytes. Each node gets the latest version, whole or as the change of the one that it is known to
have, whichever is smaller.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, islice
from logging import WARNING
from typing import Any, cast

import numpy as np
import torch
from flwr.common import log
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from codec import Augmentation, CodecError, SampleSpec
from codec.learning.scout import LINEAR, Floats, Layout, Plan, Scout, plan_of
from codec.learning.scout_bytes import from_bytes, quantized, to_bytes
from codec.messages import BankTraining, ReplayRequest, SampleReply, Terms
from codec.random import Stream, server_generator, torch_seed
from strategies.received import Received
from strategies.sample_bank import SampleBank
from strategies.server_model import Batch

_LEARNING_RATE = 3e-3
_MEASURED = 8  # minibatches from which the range of inputs and targets is taken
_FEWEST = 16  # samples in the bank before a scout is trained
_LEAST_DEVIATION = 1e-6  # of an input, relative to the largest


class ScoutNetwork(nn.Module):
    r"""A scout while it is trained: with batch normalization, which is folded in later.

    Parameters
    ----------
    plan : Plan

    Attributes
    ----------
    centre, factor : Tensor
        (channels,) what inputs are lessened and multiplied by; see `measure`.
    target_centre, target_scale : Tensor
        (outputs,) range of float targets.
    """

    centre: Tensor
    factor: Tensor
    target_centre: Tensor
    target_scale: Tensor

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        outputs = plan.layers[-1][1]
        self.register_buffer("centre", torch.zeros(plan.channels))
        self.register_buffer("factor", torch.ones(plan.channels))
        self.register_buffer("target_centre", torch.zeros(outputs))
        self.register_buffer("target_scale", torch.ones(outputs))
        before = plan.channels
        self.inner = nn.ModuleList()
        for stride, count in plan.layers[:-1]:
            if stride == LINEAR:
                pair: list[nn.Module] = [nn.Linear(before, count), nn.BatchNorm1d(count)]
            else:
                convolution = nn.Conv2d(before, count, 3, stride, padding=1, bias=False)
                pair = [convolution, nn.BatchNorm2d(count)]
            self.inner.append(nn.Sequential(*pair, nn.ReLU()))
            before = count
        self.last = nn.Linear(before, outputs)

    @torch.no_grad()
    def measure(self, samples: Tensor, targets: Tensor) -> None:
        r"""Take the range of inputs, and of float targets, from some samples.

        Parameters
        ----------
        samples : Tensor
            (N, \*shape) as the model sees them.
        targets : Tensor
            (N,) labels, or floats.
        """
        values = _viewed(samples, self.plan)
        deviation, centre = torch.std_mean(values, [0, *range(2, values.ndim)], correction=0)
        least = _LEAST_DEVIATION * float(deviation.max()) or 1.0
        self.centre.copy_(centre)
        self.factor.copy_(1 / deviation.clamp_min(least))
        if targets.is_floating_point():
            spread, middle = torch.std_mean(targets.reshape(len(targets), -1), 0, correction=0)
            self.target_centre.copy_(middle)
            self.target_scale.copy_(torch.where(spread > 0, spread, 1.0))

    def forward(self, samples: Tensor) -> Tensor:
        """Map samples (N, *shape) as the model sees them to (N, outputs)."""
        values = _viewed(samples, self.plan)
        inner = (1, -1) + (1,) * (values.ndim - 2)
        values = (values - self.centre.view(inner)) * self.factor.view(inner)
        for (stride, _), block in zip(self.plan.layers, self.inner, strict=False):
            values = block(_averaged(values) if stride == LINEAR else values)
        outputs: Tensor = self.last(_averaged(values))
        return outputs * self.target_scale + self.target_centre

    def losses(self, samples: Tensor, targets: Tensor) -> Tensor:
        """Return (N,) losses: cross-entropy, or squared error in units of the targets' spread."""
        outputs = self(samples)
        if not targets.is_floating_point():
            return functional.cross_entropy(outputs, targets, reduction="none")
        errors = (outputs - targets.reshape(outputs.shape)) / self.target_scale
        losses: Tensor = errors.square().mean(dim=1)
        return losses

    @torch.no_grad()
    def folded(self) -> list[tuple[Floats, Floats]]:
        """Return weights and biases of the layers, in the order that `Scout` has them."""
        return [
            *(_folded(*cast(nn.Sequential, block)[:2]) for block in self.inner),
            _scaled(self.last, self.target_scale, self.target_centre),
        ]


@dataclass(frozen=True)
class _Version:
    scout: Scout
    whole: bytes


class ScoutTrainer:
    """Trains a scout on the bank, and knows which version each node has.

    It learns by cross-entropy, or squared error where targets are floats, whatever the model's
    criterion is.

    Parameters
    ----------
    training : BankTraining
        Steps, and size of a minibatch.
    seed : int
        Of the run.
    device : torch.device
        Where it is trained.
    augment : callable, optional
        What minibatches go through, as the model's.
    """

    def __init__(
        self,
        training: BankTraining,
        seed: int,
        device: torch.device,
        augment: Augmentation | None = None,
    ) -> None:
        self.training, self.seed, self.device, self.augment = training, seed, device, augment
        self._plan: Plan | None = None
        self._network: ScoutNetwork | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._latest: _Version | None = None
        self._asked: dict[int, _Version] = {}  # what a node's reply will show that it has
        self._known: dict[int, _Version] = {}
        # How the latest travels, by the whole form of the version that it changes.
        self._sent: dict[bytes, bytes] = {}

    def settle(self, terms: Terms, spec: SampleSpec | None) -> None:
        """Settle what the scout is like, once it is known what the samples are.

        Parameters
        ----------
        terms : Terms
            That were agreed on.
        spec : SampleSpec or None
            What the samples are; None: not known yet.

        Raises
        ------
        CodecError
            If there is no scout for such samples.
        """
        if self._plan is None and spec is not None:
            outputs = max(terms.outputs, spec.classes) if spec.classes else spec.target_size
            self._plan = plan_of(spec, max(1, outputs))

    def request_to(
        self, node_id: int, request: ReplayRequest, spec: SampleSpec | None
    ) -> ReplayRequest:
        """Return a request with what the node needs to have the latest scout.

        Parameters
        ----------
        node_id : int
        request : ReplayRequest
            With the terms that were agreed on.
        spec : SampleSpec or None
            What the samples are, once that is known.

        Raises
        ------
        CodecError
            If there is no scout for such samples.
        """
        self.settle(request.terms, spec)
        latest = self._latest
        if latest is None:
            return request
        # If the reply gets lost, what the node has is not known: it will be sent a whole one.
        before = self._known.pop(node_id, None)
        self._asked[node_id] = latest
        return replace(request, scout=self._smallest(latest, before))

    def _smallest(self, latest: _Version, before: _Version | None) -> bytes:
        """Return the latest version, whole or as the change of another."""
        if before is None:
            return latest.whole
        if before.whole not in self._sent:
            change = to_bytes(latest.scout, before.scout)
            self._sent[before.whole] = min(latest.whole, change, key=len)
        return self._sent[before.whole]

    def arrived(self, received: Received) -> None:
        """Take note of an accepted reply: the node has what it was asked with, or says not."""
        version, reply = self._asked.pop(received.node_id, None), received.reply
        lacks = isinstance(reply, SampleReply) and reply.lacks_scout
        if version is not None and not lacks:
            self._known[received.node_id] = version

    def train(self, server_round: int, bank: SampleBank) -> None:
        """Take a round's steps on minibatches of the bank; the next requests bring the result.

        A scout whose training diverges is given up with a warning, and a new one begun: what it is
        for does without it.
        """
        if self._plan is None or len(bank) < _FEWEST:
            return
        stream = server_generator(self.seed, server_round, Stream.SERVER_SCOUT)
        augmentation = torch.Generator(self.device)
        augmentation.manual_seed(torch_seed(stream))
        size, steps = self.training.server_batch_size, self.training.scout_steps
        batches = bank.minibatches(max(2, size), steps, stream, self.device)
        if self._network is None:
            network = self._build(self._plan, torch_seed(stream))
            first = list(islice(batches, _MEASURED))
            samples, targets, _ = (torch.cat(parts) for parts in zip(*first, strict=True))
            network.measure(samples, targets)
            batches = chain(first, batches)
        self._take_steps(batches, augmentation)
        try:
            self._publish()
        except CodecError as error:
            log(WARNING, "round %d: %s; samples come in random order", server_round, error)
            self._network = self._optimizer = self._latest = None
            self._asked, self._known = (
                {},
                {},
            )  # the next has other inputs, and changes none of these

    def position(self) -> dict[str, NDArray[Any]]:
        """Return all that a resumed run needs, see `restore`; nothing before the first training.

        Not who has which version: what a client keeps ends with its run, and each gets a whole one.
        """
        latest, network, optimizer = self._latest, self._network, self._optimizer
        if latest is None or network is None or optimizer is None:
            return {}
        found = {f"network.{name}": value for name, value in network.state_dict().items()}
        for place, values in optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{place}.{name}": value for name, value in values.items()}
        arrays = {key: value.detach().cpu().numpy().copy() for key, value in found.items()}
        return arrays | {"latest": np.frombuffer(latest.whole, np.uint8).copy()}

    def restore(self, position: Mapping[str, NDArray[Any]]) -> None:
        """Go on, bit for bit, where `position` was taken."""
        self._network = self._optimizer = self._latest = None
        self._asked, self._known, self._sent = {}, {}, {}
        if not position:
            return
        whole = position["latest"].tobytes()
        self._latest = _Version(from_bytes(whole), whole)
        self._plan = self._latest.scout.plan
        network = self._build(self._plan, 0)
        network.load_state_dict(_tensors(position, "network."))
        states: dict[int, dict[str, Tensor]] = {}
        for name, value in _tensors(position, "optimizer.").items():
            place, _, what = name.partition(".")
            states.setdefault(int(place), {})[what] = value
        assert self._optimizer is not None
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": states, "param_groups": groups})

    def _build(self, plan: Plan, seed: int) -> ScoutNetwork:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = ScoutNetwork(plan).to(self.device)
        self._network = network
        self._optimizer = torch.optim.Adam(network.parameters(), _LEARNING_RATE)
        return network

    def _take_steps(self, batches: Iterator[Batch], augmentation: torch.Generator) -> None:
        assert self._network is not None and self._optimizer is not None
        self._network.train()
        for samples, targets, weights in batches:
            seen = samples if self.augment is None else self.augment(samples, augmentation)
            self._optimizer.zero_grad(set_to_none=True)
            with torch.enable_grad():
                losses = self._network.losses(seen, targets)
                loss = (weights * losses).sum() / weights.sum()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's has no types
            self._optimizer.step()

    def _publish(self) -> None:
        assert self._network is not None and self._plan is not None
        network, before = self._network, self._latest
        centre, factor = (part.float().cpu().numpy() for part in (network.centre, network.factor))
        scout = quantized(
            self._plan,
            centre,
            factor,
            network.folded(),
            self.training.scout_bits,
            before.scout if before else None,
        )
        self._latest, self._sent = _Version(scout, to_bytes(scout)), {}


def _viewed(samples: Tensor, plan: Plan) -> Tensor:
    """Return samples (N, *shape) as a scout looks at them: (N, C, H, W) or (N, channels)."""
    values = samples.float()
    if plan.layout is Layout.FLAT:
        kept = values.reshape(len(values), -1)[:, : plan.channels * plan.pool]
        return kept.reshape(len(values), -1, plan.pool).mean(dim=2)
    if plan.layout is Layout.LAST:
        values = values.permute(0, 3, 1, 2)
    elif plan.layout is Layout.GREY:
        values = values.unsqueeze(1)
    return values if plan.pool == 1 else functional.avg_pool2d(values, plan.pool)


def _tensors(position: Mapping[str, NDArray[Any]], start: str) -> dict[str, Tensor]:
    """Return the arrays whose names start so, without that."""
    return {
        key.removeprefix(start): torch.from_numpy(value.copy())
        for key, value in position.items()
        if key.startswith(start)
    }


def _averaged(values: Tensor) -> Tensor:
    """Return the mean over the places of an image; flat values as they are."""
    return values.mean(dim=(2, 3)) if values.ndim == 4 else values


def _folded(layer: nn.Module, norm: nn.Module) -> tuple[Floats, Floats]:
    """Return weights and biases of a layer with the normalization that follows it."""
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
    assert norm.running_var is not None and norm.running_mean is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return _scaled(layer, scale, norm.bias.double() - norm.running_mean.double() * scale)


def _scaled(layer: nn.Module, scale: Tensor, shift: Tensor) -> tuple[Floats, Floats]:
    """Return weights and biases of a layer whose outputs are then scaled and shifted."""
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    weights = layer.weight.double()
    if weights.ndim == 4:
        weights = weights.permute(0, 2, 3, 1)  # rows, columns, channels, as `Layer` has them
    rows = weights.reshape(len(weights), -1) * scale.double()[:, None]
    bias = shift.double()
    if layer.bias is not None:
        bias = bias + layer.bias.double() * scale.double()
    return rows.float().cpu().numpy(), bias.float().cpu().numpy()
