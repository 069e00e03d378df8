"""What came of a task, and the frontier that the points of a method make."""

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from codec.samples.registry import SAMPLE_CODECS

PATHS = ("out-dir", "data-dir", "state-dir", "bank")  # mean nothing on another machine
# What the same config makes of training changes with the code at times: 2 calibrates averaged batch
# normalization on the bank. Points of before stay, beside new ones.
RECIPE = 2
_CODEC_OPTIONS = frozenset(name for codec in SAMPLE_CODECS.values() for name in codec.uses)
_SPEED = ("threads", "precision")  # change how long it takes, not what is measured


@dataclass(frozen=True)
class Point:
    """One training, to its end.

    Attributes
    ----------
    dataset, method : str
        As in `sim.frontier.plans.Task`.
    config : dict
        The whole run config but for paths.
    seed : int
    clients : int
    accuracy : float
        On all original test images, a fraction.
    uplink_bytes, downlink_bytes : int
        Serialized content of all messages, by the ledger.
    samples : int
        That were sent.
    steps : int
        Optimizer steps of the server, or of a client.
    seconds : float
        CPU seconds of the process, clients and server together.
    machine : str
    versions : dict
    recipe : int
        Of the code's training, see `RECIPE`.
    """

    dataset: str
    method: str
    config: dict[str, Any]
    seed: int
    clients: int
    accuracy: float
    uplink_bytes: int
    downlink_bytes: int
    samples: int
    steps: int
    seconds: float
    machine: str
    versions: dict[str, str]
    recipe: int = 1


@dataclass(frozen=True)
class Mean:
    """Points that differ in the seed alone.

    Attributes
    ----------
    method : str
    config : dict
        Without the seed.
    accuracy, deviation : float
        Mean and standard deviation, NaN of a single seed.
    uplink_bytes, samples, steps, seconds : float
        Means.
    seeds : int
    """

    method: str
    config: dict[str, Any]
    accuracy: float
    deviation: float
    uplink_bytes: float
    samples: float
    steps: float
    seconds: float
    seeds: int


def comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes a point another one.

    An option that came later had its default before; those of other codecs make no difference.
    """
    whole = {**_defaults(), **config}
    codec = SAMPLE_CODECS.get(whole["codec"])
    unused = _CODEC_OPTIONS.difference(codec.uses) if codec else frozenset()
    left_out = {*PATHS, *_SPEED, *(name.replace("_", "-") for name in unused)}
    return {key: value for key, value in whole.items() if key not in left_out}


@cache
def _defaults() -> dict[str, Any]:
    from fl_app.config import RunConfig

    return dict(RunConfig().to_run_config())


def means(points: Iterable[Point]) -> list[Mean]:
    """Return the means over seeds, by uplink."""
    groups: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        config = comparable(point.config) | {"seed": 0, "recipe": point.recipe}
        groups.setdefault((point.method, repr(sorted(config.items()))), []).append(point)
    found = [_mean(group) for group in groups.values()]
    return sorted(found, key=lambda mean: mean.uplink_bytes)


def _mean(group: Sequence[Point]) -> Mean:
    shares = [point.accuracy for point in group]
    return Mean(
        method=group[0].method,
        config={key: value for key, value in group[0].config.items() if key != "seed"},
        accuracy=statistics.fmean(shares),
        deviation=statistics.stdev(shares) if len(shares) > 1 else math.nan,
        uplink_bytes=statistics.fmean(point.uplink_bytes for point in group),
        samples=statistics.fmean(point.samples for point in group),
        steps=statistics.fmean(point.steps for point in group),
        seconds=statistics.fmean(point.seconds for point in group),
        seeds=len(group),
    )


def envelope(points: Iterable[Mean]) -> list[Mean]:
    """Return the points that no cheaper one equals, by uplink: the frontier."""
    kept: list[Mean] = []
    for point in sorted(points, key=lambda mean: (mean.uplink_bytes, -mean.accuracy)):
        if not kept or point.accuracy > kept[-1].accuracy:
            kept.append(point)
    return kept


def best_within(points: Iterable[Mean], budget: float) -> Mean | None:
    """Return the most accurate point of at most so many bytes, and 3 % more; None without any."""
    affordable = [point for point in points if point.uplink_bytes <= 1.03 * budget]
    return max(affordable, key=lambda mean: mean.accuracy, default=None)


def bytes_for(frontier: Sequence[Mean], accuracy: float) -> float | None:
    """Return the bytes at which a frontier reaches an accuracy.

    Between two points the logarithm of the bytes is linear in the accuracy; None where the
    frontier does not reach it, or begins above it.
    """
    for before, after in itertools.pairwise(frontier):
        if before.accuracy <= accuracy <= after.accuracy:
            share = (accuracy - before.accuracy) / (after.accuracy - before.accuracy)
            low, high = math.log(before.uplink_bytes), math.log(after.uplink_bytes)
            return math.exp(low + share * (high - low))
    return None
