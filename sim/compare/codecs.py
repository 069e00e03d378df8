"""Image codecs beside our codec at equal accuracy, from the raw results of a comparison."""

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

CODEC_MARGIN = 0.003  # of accuracy: a method of ours that is no further below a codec equals it
RELATIVE_BYTES = f"bytes relative to ours at equal accuracy (within {100 * CODEC_MARGIN:.1f} point)"


@dataclass(frozen=True)
class SentOnce:
    """A method that sends each sample once.

    Attributes
    ----------
    name : str
    rate : float
        Uplink bytes per sample.
    accuracies : mapping of int to float
        Final accuracy in percent, by seed.
    is_codec : bool
        Whether it is an image codec, not ours.
    ours : str or None
        Of an image codec: the cheapest of our methods whose mean accuracy, over the seeds that
        both have, is at most `CODEC_MARGIN` below the codec's; None if there is none.
    ratio : float or None
        Rate relative to that method's.
    """

    name: str
    rate: float
    accuracies: Mapping[int, float]
    is_codec: bool
    ours: str | None = None
    ratio: float | None = None


def sent_once(preset: Preset, results: Results) -> list[SentOnce]:
    """Return our methods, then the image codecs; nothing unless there are both."""
    methods = methods_run(preset, results)
    rows = [
        SentOnce(
            method.name,
            bytes_per_sample(results, method.name),
            final_percent(results, method.name),
            method.is_image_codec,
        )
        for method in methods
        if is_replay(method)
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
    """Return how many points ours is below a codec; infinite if they share no seed."""
    shared = own.accuracies.keys() & codec.accuracies.keys()
    differences = [codec.accuracies[seed] - own.accuracies[seed] for seed in shared]
    return mean(differences) if differences else math.inf


def against_codecs(preset: Preset, results: Results) -> list[str]:
    """Return a line for each method that sends a sample once: rate, accuracy, ratio to ours."""
    rows = sent_once(preset, results)
    lines = [
        f"{'each sample sent once':28}{'B per sample':>14}{'accuracy %':>16}{'ratio':>8}"
        f"  {RELATIVE_BYTES}"
    ]
    for row in rows:
        line = f"{row.name:28}{row.rate:14.1f}{spread(row.accuracies.values()):>16}"
        if row.is_codec:
            ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
            line += f"{ratio:>8}  {row.ours or 'none'}"
        lines.append(line)
    return lines if rows else []
