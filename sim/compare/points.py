"""Figures of one method, by seed and averaged, from the raw results of a comparison."""

import statistics
from collections.abc import Callable, Iterable
from typing import Any

from sim.compare.presets import Method, Preset
from sim.compare.results import Results

Row = dict[str, Any]
Size = Callable[[Row], float]


def uplink(point: Row) -> float:
    """Return bytes from the clients to the server, so far."""
    return float(point["uplink_bytes"])


def both_ways(point: Row) -> float:
    """Return bytes in both directions, so far."""
    return float(point["uplink_bytes"] + point["downlink_bytes"])


def methods_run(preset: Preset, results: Results) -> list[Method]:
    """Return the preset's methods that have results."""
    names = {run["method"] for run in results.runs}
    return [method for method in preset.methods if method.name in names]


def is_replay(method: Method) -> bool:
    """Whether a method sends each sample once, with our codec or an image codec."""
    return method.config.get("strategy", "replay") == "replay"


def points_of(results: Results, method: str) -> dict[int, list[Row]]:
    """Return a method's points by seed, in order of their steps."""
    seeds: dict[int, list[Row]] = {}
    for point in results.points:
        if point["method"] == method:
            seeds.setdefault(point["seed"], []).append(point)
    return {seed: sorted(rows, key=lambda row: row["step"]) for seed, rows in seeds.items()}


def mean_points(results: Results, method: str) -> list[Row]:
    """Return accuracy and bytes at the steps at which all seeds were evaluated, averaged."""
    seeds = [{row["step"]: row for row in rows} for rows in points_of(results, method).values()]
    shared = sorted(set.intersection(*map(set, seeds))) if seeds else []
    keys = ("accuracy", "uplink_bytes", "downlink_bytes")
    return [
        {"step": step} | {key: mean(rows[step][key] for rows in seeds) for key in keys}
        for step in shared
    ]


def best_accuracy(results: Results, method: str) -> float:
    """Return the highest accuracy that a method reaches, mean over its seeds."""
    return max(float(row["accuracy"]) for row in mean_points(results, method))


def common_accuracy(preset: Preset, results: Results) -> float:
    """Return the highest accuracy that every method reaches (mean over its seeds), or 0."""
    best = [best_accuracy(results, method.name) for method in methods_run(preset, results)]
    return min(best, default=0.0)


def needed_bytes(results: Results, method: str, accuracy: float, size: Size) -> float | None:
    """Return the bytes at which a method first reaches an accuracy, mean over its seeds.

    None if it never does. No interpolation: the bytes of the first evaluation that did.
    """
    points = mean_points(results, method)
    return next((size(row) for row in points if row["accuracy"] >= accuracy), None)


def last_values(results: Results, method: str, key: str) -> list[float]:
    """Return a value of each seed's last evaluation."""
    return [float(rows[-1][key]) for rows in points_of(results, method).values()]


def final_percent(results: Results, method: str) -> dict[int, float]:
    """Return the last accuracy in percent by seed."""
    seeds = points_of(results, method)
    return {seed: 100 * float(rows[-1]["accuracy"]) for seed, rows in seeds.items()}


def mean(values: Iterable[float]) -> float:
    """Return the arithmetic mean."""
    return float(statistics.fmean(values))


def spread(values: Iterable[float]) -> str:
    """Return mean and standard deviation, the mean alone of a single value."""
    values = list(values)
    text = f"{statistics.mean(values):.2f}"
    return f"{text} +/- {statistics.stdev(values):.2f}" if len(values) > 1 else text


def bytes_per_sample(results: Results, method: str) -> float:
    """Return a method's uplink bytes for each sample that it sent, mean over its seeds."""
    sent = {run["seed"]: run["samples_sent"] for run in results.runs if run["method"] == method}
    seeds = points_of(results, method)
    return mean(uplink(rows[-1]) / sent[seed] for seed, rows in seeds.items())
