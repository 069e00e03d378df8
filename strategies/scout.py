"""The server's side of scouts: one is trained on the bank beside the model, and sent to the nodes.

A scout (`codec.learning.scout`) stands in for the model where clients score their samples, in
kilobytes. Each node gets the latest version, whole or as the change of the one that it is known to
have, whichever is smaller.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice

import torch
from torch import Tensor, nn
from torch.nn import functional

from codec import Augmentation, SampleSpec
from codec.learning.scout import LINEAR, Floats, Layout, Plan, Scout, plan_of
from codec.learning.scout_bytes import quantized, to_bytes
from codec.messages import BankTraining, ReplayRequest
from codec.random import Stream, server_generator, torch_seed
from strategies.received_samples import ReceivedSamples
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
    seen : Tensor
        (N, \*shape) samples as the model sees them; tell the range of the inputs.
    targets : Tensor
        (N,) labels, or floats, whose range the outputs have.
    """

    def __init__(self, plan: Plan, seen: Tensor, targets: Tensor) -> None:
        super().__init__()
        self.plan = plan
        values = _viewed(seen, plan)
        places = [0, *range(2, values.ndim)]
        deviation, centre = torch.std_mean(values, places, correction=0)
        least = _LEAST_DEVIATION * float(deviation.max()) or 1.0
        self.register_buffer("centre", centre)
        self.register_buffer("factor", 1 / deviation.clamp_min(least))
        outputs = plan.layers[-1][1]
        self.register_buffer("target_centre", torch.zeros(outputs))
        self.register_buffer("target_scale", torch.ones(outputs))
        if targets.is_floating_point():
            spread, middle = torch.std_mean(targets.reshape(len(targets), -1), 0, correction=0)
            self.target_centre, self.target_scale = middle, torch.where(spread > 0, spread, 1.0)
        before, layers = plan.channels, list[nn.Module]()
        norms = list[nn.Module]()
        for stride, count in plan.layers:
            if stride == LINEAR:
                layers.append(nn.Linear(before, count))
                norms.append(nn.BatchNorm1d(count))
            else:
                layers.append(nn.Conv2d(before, count, 3, stride, padding=1, bias=False))
                norms.append(nn.BatchNorm2d(count))
            before = count
        self.layers, self.norms = nn.ModuleList(layers), nn.ModuleList(norms[:-1])

    def forward(self, samples: Tensor) -> Tensor:
        """Map samples (N, *shape) as the model sees them to (N, outputs)."""
        values = _viewed(samples, self.plan)
        inner = (1, -1) + (1,) * (values.ndim - 2)
        values = (values - self.centre.view(inner)) * self.factor.view(inner)
        for layer, norm in zip(self.layers, self.norms, strict=False):
            values = functional.relu(norm(layer(_fitting(values, layer))))
        last = self.layers[-1]
        return last(_fitting(values, last)) * self.target_scale + self.target_centre

    def losses(self, samples: Tensor, targets: Tensor) -> Tensor:
        """Return (N,) losses: cross-entropy, or squared error in units of the targets' spread."""
        outputs = self(samples)
        if not targets.is_floating_point():
            return functional.cross_entropy(outputs, targets, reduction="none")
        errors = (outputs - targets.reshape(outputs.shape)) / self.target_scale
        return errors.square().mean(dim=1)

    @torch.no_grad()
    def folded(self) -> list[tuple[Floats, Floats]]:
        """Return weights and biases of the layers, in the order that `Scout` has them."""
        found = []
        for place, layer in enumerate(self.layers):
            weights = layer.weight.double()
            bias = torch.zeros(len(weights)) if layer.bias is None else layer.bias
            bias = bias.double()
            if place < len(self.norms):
                norm = self.norms[place]
                scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
                bias = (bias - norm.running_mean.double()) * scale + norm.bias.double()
            else:
                scale = self.target_scale.double()
                bias = bias * scale + self.target_centre.double()
            weights = weights * scale.reshape(-1, *[1] * (weights.ndim - 1))
            if weights.ndim == 4:
                weights = weights.permute(0, 2, 3, 1)
            rows = weights.reshape(len(weights), -1)
            found.append((rows.float().cpu().numpy(), bias.float().cpu().numpy()))
        return found


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
        if self._plan is None and spec is not None:
            outputs = max(request.terms.outputs, spec.classes) if spec.classes else spec.target_size
            self._plan = plan_of(spec, max(1, outputs))
        latest = self._latest
        if latest is None:
            return request
        # If the reply gets lost, what the node has is not known: it will be sent a whole one.
        before = self._known.pop(node_id, None)
        self._asked[node_id] = latest
        sent = latest.whole
        if before is not None:
            sent = min(sent, to_bytes(latest.scout, before.scout), key=len)
        return replace(request, scout=sent)

    def arrived(self, received: ReceivedSamples) -> None:
        """Take note of an accepted reply: the node has what it was asked with, or says not."""
        version = self._asked.pop(received.node_id, None)
        if version is not None and not received.reply.lacks_scout:
            self._known[received.node_id] = version

    def train(self, server_round: int, bank: SampleBank) -> None:
        """Take a round's steps on minibatches of the bank; the next requests bring the result.

        Raises
        ------
        CodecError
            If the training has diverged.
        """
        if self._plan is None or len(bank) < _FEWEST:
            return
        stream = server_generator(self.seed, server_round, Stream.SERVER_SCOUT)
        augmentation = torch.Generator(self.device)
        augmentation.manual_seed(torch_seed(stream))
        size, steps = self.training.server_batch_size, self.training.scout_steps
        batches = bank.minibatches(max(2, size), steps, stream, self.device)
        if self._network is None:
            first = list(islice(batches, _MEASURED))
            self._build(self._plan, first, torch_seed(stream))
            batches = chain(first, batches)
        self._take_steps(batches, augmentation)
        self._publish()

    def _build(self, plan: Plan, batches: list[Batch], seed: int) -> None:
        samples, targets = (torch.cat([batch[part] for batch in batches]) for part in (0, 1))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = ScoutNetwork(plan, samples.cpu(), targets.cpu()).to(self.device)
        self._network = network
        self._optimizer = torch.optim.Adam(network.parameters(), _LEARNING_RATE)

    def _take_steps(self, batches: Iterator[Batch], augmentation: torch.Generator) -> None:
        assert self._network is not None and self._optimizer is not None
        self._network.train()
        for samples, targets, weights in batches:
            seen = samples if self.augment is None else self.augment(samples, augmentation)
            with torch.enable_grad():
                losses = self._network.losses(seen, targets)
                loss = (weights * losses).sum() / weights.sum()
                self._optimizer.zero_grad(set_to_none=True)
                loss.backward()
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
        self._latest = _Version(scout, to_bytes(scout))


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


def _fitting(values: Tensor, layer: nn.Module) -> Tensor:
    """Return what a layer takes: a linear one the mean over the places of an image."""
    is_image = values.ndim == 4 and isinstance(layer, nn.Linear)
    return values.mean(dim=(2, 3)) if is_image else values
