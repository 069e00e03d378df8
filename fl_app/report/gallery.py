"""Pictures: which samples are shown, and what they look like at other rates."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec import CodecError, SampleSpec, decode_samples, encode_samples
from codec.samples.rate_curve import QUALITY, knob_of, with_setting
from fl_app.report.arrived import Ints

_SIDE = 96  # pixels of a picture: of larger ones the middle is shown, which keeps pixels pixels
_FINEST_QUALITY = 95.0
# Samples that a payload holds beside the one that is measured: image files take long to write.
_BESIDE, _BESIDE_FILES = 31, 7
_VALUES = 3072  # of a sample of which a payload holds so many
_KEY = (0, 0, 0)


@dataclass(frozen=True)
class Coded:
    r"""Samples at one rate.

    Attributes
    ----------
    label : str
        The setting in words, such as "step 0.5".
    samples : float32 (M, \*shape)
        What they decode to, in source units.
    sizes : int64 (M,)
        Bytes by which a payload grows with each.
    """

    label: str
    samples: NDArray[np.float32]
    sizes: Ints


def settings_of(spec: SampleSpec) -> list[float]:
    """Return the settings of the rate that are shown: the run's own first, then finer, coarser."""
    knob = knob_of(spec.codec)
    own = float(getattr(spec.codec, knob)) if knob else 0.0
    if not own:
        return [0.0]
    factors = (2.0, 0.5, 0.25) if knob == QUALITY else (0.5, 2.0, 4.0)
    others = [own * factor for factor in factors]
    if knob == QUALITY:
        others = [max(1.0, min(_FINEST_QUALITY, float(round(other)))) for other in others]
    return [own, *(other for other in dict.fromkeys(others) if other != own)]


def coded(
    samples: NDArray[Any],
    labels: Ints,
    beside: NDArray[Any],
    spec: SampleSpec,
    setting: float,
) -> Coded | None:
    r"""Code samples, each in a payload with the same others; None if the codec refuses.

    Parameters
    ----------
    samples, labels : (M, \*shape) array, int64 (M,)
        M >= 1 originals.
    beside : (B, \*shape) array
        B >= 1 others, of which some are taken.
    spec : SampleSpec
    setting : float
        Of the codec, see `settings_of`.
    """
    knob = knob_of(spec.codec)
    codec = with_setting(spec.codec, setting) if knob else spec.codec
    most = _BESIDE if knob != QUALITY else _BESIDE_FILES
    others = beside[: max(1, min(most, most * _VALUES // samples[0].size))]
    same = np.zeros(len(others), np.int64)  # their labels cost what they cost in each payload
    try:
        at = SampleSpec(spec.shape, spec.dtype, spec.low, spec.high, spec.classes, codec=codec)
        least = len(encode_samples(others, same, at, key=_KEY, like=others).to_bytes())
        sizes, found = [], []
        for sample, label in zip(samples, labels, strict=True):
            both, targets = np.concatenate([others, sample[None]]), np.append(same, label)
            payload = encode_samples(both, targets, at, key=_KEY, like=others)
            sizes.append(len(payload.to_bytes()) - least)
            found.append(decode_samples(payload).samples[-1])
    except CodecError:
        return None
    name = f"{knob} {setting:g}" if knob else codec.codec
    if knob == QUALITY:
        name = f"{codec.codec}, {name}"
    return Coded(name, np.stack(found), np.array(sizes, np.int64))


def spread_over_classes(labels: Ints, number: int) -> Ints:
    """Return places of up to `number` samples, the classes in turn, in the order of the classes."""
    turns = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        here = np.flatnonzero(labels == label)
        turns[here] = np.arange(len(here))
    chosen: Ints = np.lexsort((labels, turns))[:number]
    ordered: Ints = chosen[np.lexsort((turns[chosen], labels[chosen]))]
    return ordered


def evenly(places: Ints, number: int) -> Ints:
    """Return up to `number` of some places, evenly from the first to the last."""
    if len(places) <= number:
        return places
    chosen: Ints = places[np.linspace(0, len(places) - 1, number).round().astype(int)]
    return chosen


def data_uri(sample: NDArray[Any], bounds: tuple[float, float]) -> str:
    """Return a picture, (C, H, W) of 1 or 3 channels in `bounds`, as the address of a PNG."""
    from PIL import Image

    low, high = bounds
    unit = (middle(sample).astype(np.float64) - low) / (high - low)
    pixels = np.clip(np.rint(255 * unit), 0, 255).astype(np.uint8)
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def middle(sample: NDArray[Any]) -> NDArray[Any]:
    """Return a picture (C, H, W), cut to its middle if it is large."""
    cuts = [slice(max(0, (side - _SIDE) // 2), None) for side in sample.shape[1:]]
    return sample[:, cuts[0], cuts[1]][:, :_SIDE, :_SIDE]


def is_cut(shape: Sequence[int]) -> bool:
    """Whether of pictures of a shape only the middle is shown."""
    return max(shape[1:]) > _SIDE


def difference(original: NDArray[Any], arrived: NDArray[Any], bounds: tuple[float, float]) -> Any:
    """Return what coding has changed, twofold, around the middle of the range."""
    return (bounds[0] + bounds[1]) / 2 + 2 * (arrived.astype(np.float64) - original)
