"""What samples take, and what they lose, over the setting of their codec."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from codec.errors import PayloadError
from codec.samples.options import AUTO, CodecOptions
from codec.samples.registry import SAMPLE_CODECS

STEP, QUALITY = "step", "quality"
# From what no network misses anything of to where most samples are a few flat blocks.
SETTINGS = {
    STEP: (0.1, 0.18, 0.31, 0.55, 0.97, 1.7, 3.0),
    QUALITY: (95.0, 85.0, 70.0, 50.0, 30.0, 15.0, 5.0),
}
_MOST_POINTS = 32
_POINT = np.dtype([("setting", "<f4"), ("bytes", "<f4"), ("lost", "<f4")])
_FEWEST_BYTES, _LEAST_LOST = 1e-3, 1e-6  # where logarithms are taken


def knob_of(codec: CodecOptions) -> str:
    """Return the option that sets the rate of a codec: `STEP`, `QUALITY`, or none (empty)."""
    used = (STEP,) if codec.codec == AUTO else SAMPLE_CODECS[codec.codec].uses
    return next((knob for knob in SETTINGS if knob in used), "")


@dataclass(frozen=True)
class RateCurve:
    """Points of a curve, finest first.

    Attributes
    ----------
    settings : float64 (P,)
        Step or quality of the codec; 0 where it has neither. From the finest to the coarsest.
    sizes : float64 (P,)
        Bytes that one more sample takes, > 0; never growing.
    losses : float64 (P,)
        Share of the variance that is lost, in [0, 1]; never falling.
    """

    settings: NDArray[np.float64]
    sizes: NDArray[np.float64]
    losses: NDArray[np.float64]

    @classmethod
    def of(cls, points: Sequence[tuple[float, float, float]]) -> Self:
        """Return the curve of ``(setting, bytes, lost)``, finest first, made monotone."""
        settings, sizes, losses = np.array(points, np.float64).T
        sizes = np.maximum.accumulate(np.maximum(sizes, _FEWEST_BYTES)[::-1])[::-1]
        losses = np.maximum.accumulate(np.clip(losses, 0, 1))
        return cls(settings, sizes, losses)

    @classmethod
    def mean(cls, curves: Iterable[tuple[float, Self]]) -> Self:
        """Return the mean of ``(weight, curve)``, weights > 0; of the settings of the first.

        Curves of other settings are left out.
        """
        (first, *_) = every = list(curves)
        alike = [(w, c) for w, c in every if np.array_equal(c.settings, first[1].settings)]
        total = sum(weight for weight, _ in alike)
        sizes = sum((weight / total * curve.sizes for weight, curve in alike), np.zeros(1))
        losses = sum((weight / total * curve.losses for weight, curve in alike), np.zeros(1))
        return cls(first[1].settings, sizes, losses)

    def to_bytes(self) -> bytes:
        """Return the curve as it travels, 12 bytes a point."""
        points = np.empty(len(self.settings), _POINT)
        points["setting"], points["bytes"], points["lost"] = self.settings, self.sizes, self.losses
        return points.tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` wrote.

        Raises
        ------
        PayloadError
            If the bytes are no curve.
        """
        count, rest = divmod(len(data), _POINT.itemsize)
        if rest or not 1 <= count <= _MOST_POINTS:
            raise PayloadError(f"a rate curve of {len(data)} bytes; legal: 12 for each point")
        points = np.frombuffer(data, _POINT)
        columns = [points[name].astype(np.float64) for name in ("setting", "bytes", "lost")]
        settings, sizes, losses = columns
        order = np.diff(settings)
        if not (
            all(np.isfinite(column).all() for column in columns)
            and ((order > 0).all() or (order < 0).all())
            and (settings > 0).all() | (count == 1)
            and (sizes > 0).all()
            and (np.diff(sizes) <= 0).all()
            and (losses >= 0).all()
            and (losses <= 1).all()
            and (np.diff(losses) >= 0).all()
        ):
            raise PayloadError("a rate curve that is not from the finest setting to the coarsest")
        return cls(settings, sizes, losses)

    def between(self, points: int) -> Self:
        """Return the curve at so many settings from the first to the last, in equal ratios.

        Bytes and losses are interpolated in logarithms.
        """
        if len(self.settings) == 1:
            return self
        place = np.log(self.settings)
        along = np.linspace(place[0], place[-1], points)
        forward = slice(None, None, 1 if place[0] < place[-1] else -1)

        def at(values: NDArray[np.float64], least: float) -> NDArray[np.float64]:
            known = np.log(np.maximum(values, least))
            found: NDArray[np.float64] = np.exp(np.interp(along, place[forward], known[forward]))
            return found

        losses = np.minimum(at(self.losses, _LEAST_LOST), 1.0)
        return type(self)(np.exp(along), at(self.sizes, _FEWEST_BYTES), losses)

    @property
    def finest(self) -> float:
        """The setting that takes most bytes."""
        return float(self.settings[0])


def with_setting(codec: CodecOptions, setting: float) -> CodecOptions:
    """Return options with another setting of their rate; those that have none as they are."""
    knob = knob_of(codec)
    if knob == STEP:
        return replace(codec, step=setting)
    if knob == QUALITY:
        return replace(codec, quality=min(100, max(1, math.floor(setting))))
    return codec
