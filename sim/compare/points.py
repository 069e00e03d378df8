"""What the raw results of a comparison hold, by method and seed."""

import statistics
from collections.abc import Callable
from typing import Any

from sim.compare.presets import Method, Preset
from sim.compare.results import Results

Row = dict[str, Any]
Size = Callable[[Row], int]


def uplink(point: Row) -> int:
    """Return bytes from the clients to the server, so far."""
    return int(point["uplink_bytes"])


def both_ways(point: Row) -> int:
    """Return bytes in both directions, so far."""
    return int(point["uplink_bytes"] + point["downlink_bytes"])


def methods_run(preset: Preset, results: Results) -> list[Method]:
    """Return the preset's methods that have results."""
    names = {run["method"] for run in results.runs}
    return [method for method in preset.methods if method.name in names]


def is_replay(method: Method) -> bool:
    """Whether a method is ours and sends each sample once."""
    return not method.upload and method.config.get("strategy", "replay") == "replay"


def points_of(results: Results, method: str) -> dict[int, list[Row]]:
    """Return a method's points by seed, in order of their steps."""
    seeds: dict[int, list[Row]] = {}
    for point in results.points:
        if point["method"] == method:
            seeds.setdefault(point["seed"], []).append(point)
    return {seed: sorted(rows, key=lambda row: row["step"]) for seed, rows in seeds.items()}


def bytes_per_sample(results: Results, method: str) -> float:
    """Return a method's uplink bytes for each sample that it sent, mean over its seeds."""
    sent = {run["seed"]: run["samples_sent"] for run in results.runs if run["method"] == method}
    seeds = points_of(results, method)
    return statistics.fmean(uplink(rows[-1]) / sent[seed] for seed, rows in seeds.items())
