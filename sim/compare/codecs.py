"""Image codecs beside ours at equal accuracy, from the raw results of a comparison."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sim.compare.points import (
    bytes_per_sample,
    final_percent,
    is_replay,
    mean,
    methods_run,
    spread,
)
from sim.compare.presets import Preset
from sim.compare.results import Results

CODEC_MARGIN = 0.003  # of accuracy, within which ours counts as equal to a codec


@dataclass(frozen=True)
class SentOnce:
    """What sends each sample once: rate in bytes a sample, final accuracies in percent by seed.

    For a codec also the coarsest of ours that ends at most `CODEC_MARGIN` below it, in the mean of
    the seeds that both have, and the ratio of the codec's rate to its; None if none of ours does.
    """

    name: str
    rate: float
    accuracies: Mapping[int, float]
    is_codec: bool
    ours: str | None = None
    ratio: float | None = None


def sent_once(preset: Preset, results: Results) -> list[SentOnce]:
    """Return ours, then the image codecs beside ours at equal accuracy; nothing without both."""
    methods = methods_run(preset, results)
    rows = [
        SentOnce(
            method.name,
            bytes_per_sample(results, method.name),
            final_percent(results, method.name),
            bool(method.upload),
        )
        for method in methods
        if method.upload or is_replay(method)
    ]
    ours = [row for row in rows if not row.is_codec]
    codecs = [_beside_ours(row, ours) for row in rows if row.is_codec]
    return [*ours, *codecs] if ours and codecs else []


def _beside_ours(codec: SentOnce, ours: Sequence[SentOnce]) -> SentOnce:
    equal = [own for own in ours if _deficit(own, codec) <= 100 * CODEC_MARGIN]
    if not equal:
        return codec
    best = min(equal, key=lambda own: own.rate)
    return replace(codec, ours=best.name, ratio=codec.rate / best.rate)


def _deficit(own: SentOnce, codec: SentOnce) -> float:
    """Return how far ours ends below a codec, in points; infinite if they share no seed."""
    shared = own.accuracies.keys() & codec.accuracies.keys()
    differences = [codec.accuracies[seed] - own.accuracies[seed] for seed in shared]
    return mean(differences) if differences else math.inf


def against_codecs(preset: Preset, results: Results) -> list[str]:
    """Return a line for each way to send a sample once: rate, accuracy, ratio to ours."""
    rows = sent_once(preset, results)
    margin = f"{100 * CODEC_MARGIN:.1f} point"
    lines = [
        f"{'each sample sent once':28}{'B a sample':>12}{'accuracy %':>16}{'ratio':>8}"
        f"  to ours that ends at most {margin} below"
    ]
    for row in rows:
        line = f"{row.name:28}{row.rate:12.1f}{spread(row.accuracies.values()):>16}"
        if row.is_codec:
            ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
            line += f"{ratio:>8}  {row.ours or 'none'}"
        lines.append(line)
    return lines if rows else []
