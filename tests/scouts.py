"""Scouts for tests: made up, or trained for a few steps."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from codec import SampleSpec
from codec.learning.scout import LINEAR, Layer, Layout, Plan, Scout, plan_of
from codec.learning.scout_bytes import quantized
from strategies.scout import ScoutNetwork

IMAGES = Plan(Layout.FIRST, (2, 6, 5), 1, ((1, 3), (2, 4), (LINEAR, 3)))
TABLE = Plan(Layout.FLAT, (5,), 1, ((LINEAR, 4), (LINEAR, 2)))


def made_up(plan: Plan = IMAGES, seed: int = 0) -> Scout:
    """Whole numbers that follow from the seed by arithmetic alone."""
    layers = []
    for fan_in, (_, outputs) in zip(plan.fan_ins, plan.layers, strict=True):
        ramp = np.arange(outputs * fan_in) + 17 * seed
        weights = (ramp * ramp // 3 + 31 * ramp) % 251 - 125
        place = np.arange(outputs) + seed
        layers.append(Layer(weights.reshape(outputs, fan_in), 7 * place - 3, place % 5 - 20))
    channels = plan.channels
    centre = np.linspace(0, 1, channels, dtype=np.float32)
    return Scout(plan, centre, np.full(channels, 4, np.float32), tuple(layers))


def batch(spec: SampleSpec, count: int = 64, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Samples as the model sees them, whose classes or targets follow from their mean."""
    rng = np.random.default_rng(seed)
    level = rng.random(count)
    samples = rng.random((count, *spec.shape)) / 2 + level.reshape(-1, *[1] * len(spec.shape)) / 2
    if spec.classes:
        return samples.astype(np.float32), (level * spec.classes).astype(np.int64)
    inner = spec.target_shape
    targets = 1000 + 50 * level.reshape(-1, *[1] * len(inner)) * np.ones((count, *inner))
    return samples.astype(np.float32), targets.astype(np.float32)


def trained(spec: SampleSpec, steps: int = 20) -> ScoutNetwork:
    """A network after some steps on `batch`."""
    samples, targets = map(torch.from_numpy, batch(spec))
    outputs = spec.classes or max(1, spec.target_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ScoutNetwork(plan_of(spec, outputs))
    network.measure(samples, targets)
    take_steps(network, spec, steps)
    return network


def take_steps(network: ScoutNetwork, spec: SampleSpec, steps: int) -> None:
    samples, targets = map(torch.from_numpy, batch(spec))
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    network.train()
    for _ in range(steps):
        optimizer.zero_grad()
        network.losses(samples, targets).mean().backward()
        optimizer.step()


def as_scout(network: ScoutNetwork, bits: int = 8, before: Scout | None = None) -> Scout:
    centre, factor = network.centre.numpy(), network.factor.numpy()
    return quantized(network.plan, centre, factor, network.folded(), bits, before)
