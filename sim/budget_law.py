"""The constants of `strategies.budget_law`, fitted to accuracies that were measured."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients import ArraySource
from clients.rate import rate_curve
from clients.reading import Reader
from codec import CodecOptions
from codec.samples.choice import TRANSFORM
from codec.samples.rate_curve import RateCurve
from fl_app.data import load
from sim.run_config import RunConfigError
from strategies.budget_law import Law

_NEEDED = ("dataset", "samples", "step", "accuracy")
# What has an error and a scale of its own.
_APART = ("dataset", "method", "model", "width", "optimizer_steps")
_SHAPE = ("tilt", "chroma")  # of the steps, which what is lost depends on as well
_FEWEST = 3  # numbers of samples and steps of one
_GRID, _ZOOMS = 23, 24
_RANGES = ((0.1, 1.0), (0.5, 3.0), (-2.0, 2.0))  # a, b, log10 of B / A

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Fit:
    """A law, and how near it comes.

    Attributes
    ----------
    law : Law
    rms : float
        Of the errors' residuals, as a fraction.
    points : int
    offsets : dict of str to (float, float)
        E* and A of each kind of training.
    """

    law: Law
    rms: float
    points: int
    offsets: dict[str, tuple[float, float]]


def read_records(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Return the records of JSONL files, `sim frontier`'s among them, that say what a fit needs.

    Raises
    ------
    RunConfigError
        If a file cannot be read.
    """
    found: list[dict[str, Any]] = []
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            records = [_flat(json.loads(line)) for line in lines]
        except (OSError, ValueError) as error:
            raise RunConfigError(f"--fit {path}: {error}") from error
        found += [one for one in records if all(one.get(key) is not None for key in _NEEDED)]
    return found


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record of `sim frontier`, which has a run config, with what a fit needs at hand."""
    config = record.get("config")
    if not isinstance(config, dict):
        return record
    step = {"dct": config.get("step"), "lossless": 0.0}.get(config.get("codec", ""))
    shape = {key: config[key] for key in _SHAPE if key in config}
    network = {key: config.get(key) for key in ("model", "width")}
    return {**record, **shape, **network, "step": step}


def fit_records(
    records: Sequence[dict[str, Any]], data_dir: str = "", echo: Callable[[str], None] = print
) -> Fit:
    """Fit the law to records, and print constants and residuals.

    What coding loses at a step is measured on the data set, as clients do, with the record's
    ``tilt`` and ``chroma`` if it has them; a step of 0 loses nothing.

    Parameters
    ----------
    records : sequence of dict
        With ``dataset``, ``samples``, ``step`` and ``accuracy`` (a fraction). Those of another
        ``method``, ``model``, ``width`` or ``optimizer_steps`` have an E* and A of their own.
    data_dir : str
        Folder of the data sets.
    echo : callable
        Called with each line.

    Raises
    ------
    RunConfigError
        If there are too few records.
    """
    kinds = [" ".join(str(one[key]) for key in _APART if key in one) for one in records]
    places = [(one["samples"], one["step"], *map(one.get, _SHAPE)) for one in records]
    distinct = Counter(kind for kind, _ in set(zip(kinds, places, strict=True)))
    kept = [k for k, kind in enumerate(kinds) if distinct[kind] >= _FEWEST]
    if len(kept) < 2 * _FEWEST:
        raise RunConfigError(
            f"--fit: {len(kept)} records of trainings that were measured at {_FEWEST} or more "
            f"numbers of samples and steps; a fit of three constants needs {2 * _FEWEST}"
        )
    samples = np.array([float(records[k]["samples"]) for k in kept])
    errors = np.array([1 - float(records[k]["accuracy"]) for k in kept])
    lost = np.array([_lost(records[k], data_dir) for k in kept])
    fit = fit_law(samples, lost, errors, [kinds[k] for k in kept])
    law = fit.law
    echo(f"LAW = Law(a={law.a:.3g}, b={law.b:.3g}, ratio={law.ratio:.3g})")
    echo(f"{fit.points} points, residual {100 * fit.rms:.2f} points (root mean square)")
    for kind, (least, scale) in fit.offsets.items():
        echo(f"{kind}: E* {least:.4f}, A {scale:.3f}, B {law.ratio * scale:.3f}")
    return fit


def fit_law(samples: Floats, lost: Floats, errors: Floats, kinds: Sequence[str]) -> Fit:
    """Return the law of least squares, by a grid that is refined; E* and A >= 0 of each kind.

    Parameters
    ----------
    samples, lost, errors : float64 (P,)
        Numbers of samples, shares of the variance lost, and test errors as fractions.
    kinds : sequence of str
        Which points share E* and A.
    """
    names = list(dict.fromkeys(kinds))
    rows = [np.array([kind == name for kind in kinds]) for name in names]
    ranges = list(_RANGES)
    best = (np.inf, 0.0, 0.0, 0.0)
    for _ in range(_ZOOMS):
        axes = [np.linspace(low, high, _GRID) for low, high in ranges]
        a, b, exponent = (axis.ravel() for axis in np.meshgrid(*axes, indexing="ij"))
        excess = samples ** -a[:, None] + 10 ** exponent[:, None] * lost ** b[:, None]
        squares = np.zeros(len(a))
        for row in rows:
            least, scale = _line(excess[:, row], errors[row])
            residual = errors[row] - least[:, None] - scale[:, None] * excess[:, row]
            squares += np.square(residual).sum(axis=1)
        place = int(squares.argmin())
        if squares[place] < best[0]:
            best = (float(squares[place]), float(a[place]), float(b[place]), float(exponent[place]))
        ranges = [
            (max(low, at - (high - low) / 3), min(high, at + (high - low) / 3))
            for (low, high), at in zip(ranges, best[1:], strict=True)
        ]
    law = Law(best[1], best[2], float(10 ** best[3]))
    offsets = {}
    for name, row in zip(names, rows, strict=True):
        least, scale = _line(law.excess(samples[row], lost[row])[None], errors[row])
        offsets[name] = float(least[0]), float(scale[0])
    return Fit(law, float(np.sqrt(best[0] / len(errors))), len(errors), offsets)


def _line(excess: Floats, errors: Floats) -> tuple[Floats, Floats]:
    """Return intercept and slope, >= 0, of errors (P,) over each row of excess (K, P)."""
    mean, level = excess.mean(axis=1), errors.mean()
    centred = excess - mean[:, None]
    spread = np.maximum(np.square(centred).sum(axis=1), 1e-30)
    slope = np.maximum((centred * (errors - level)).sum(axis=1) / spread, 0.0)
    through = (excess * errors).sum(axis=1) / np.maximum(np.square(excess).sum(axis=1), 1e-30)
    intercept = level - slope * mean
    below = intercept < 0
    return np.where(below, 0.0, intercept), np.where(below, through, slope)


def _lost(record: dict[str, Any], data_dir: str) -> float:
    step = float(record["step"])
    if not step:
        return 0.0
    shape: dict[str, Any] = {key: record[key] for key in _SHAPE if key in record}
    curve = _curve(record["dataset"], data_dir, CodecOptions(TRANSFORM, **shape))
    known = np.log(np.maximum(curve.losses, 1e-6))
    return float(np.exp(np.interp(np.log(step), np.log(curve.settings), known)))


@cache
def _curve(dataset: str, data_dir: str, codec: CodecOptions) -> RateCurve:
    images = load(dataset, "train", data_dir)
    low, high = images.kind.value_range
    source = ArraySource(images.samples, images.labels, images.classes, low, high)
    curve = rate_curve(Reader(source), codec)
    assert curve is not None
    return curve
