"""Figures from the raw results of a comparison."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.compare.points import (
    Size,
    bytes_per_sample,
    final_percent,
    is_replay,
    mean_points,
    methods_run,
    uplink,
)
from sim.compare.presets import Method, Preset
from sim.compare.results import Results
from sim.figures import BLUE, GREEN, INK, ORANGE, SKY, bare

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Place = tuple[float, float]

# Kind of method -> what it is called, and its colour.
_FAMILIES = {
    "replay": ("ours", BLUE),
    "streaming": ("ours, streaming", SKY),
    "upload": ("image codecs", INK),
    "fedavg": ("FedAvg and kin", GREEN),
    "gradient": ("compressed gradients", ORANGE),
}
# Of the bytes a sample of our finest rate: what takes more is not seen in the second panel.
_SEEN = 4.0


def family(method: Method) -> str:
    """Return the kind of a method: a key of the families' colours."""
    if method.is_image_codec:
        return "upload"
    strategy = str(method.config.get("strategy", "replay"))
    return strategy if strategy in _FAMILIES else "replay"


def plot_overview(preset: Preset, results: Results, path: Path) -> None:
    """Plot all methods over their uplink, and beside it what sends each sample once, closer.

    Parameters
    ----------
    preset : Preset
    results : Results
    path : Path
        Of the figure, 1200 pixels wide.
    """
    from matplotlib.figure import Figure

    once = [method for method in methods_run(preset, results) if is_replay(method)]
    figure = Figure(figsize=(10, 5), dpi=120, layout="constrained")
    wide, close = figure.subplots(1, 2) if len(once) > 1 else (figure.subplots(), None)
    _all_methods(wide, preset, results, uplink, "uplink of all clients")
    if close is not None:
        _close(close, once, results)
    figure.suptitle(preset.title, fontsize=13)
    figure.supxlabel(_caption(results), fontsize=8, color="0.35")
    figure.savefig(path)


def plot_accuracy(preset: Preset, results: Results, size: Size, label: str, path: Path) -> None:
    """Plot accuracy against cumulative bytes of any direction, a line for each method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.7, 5), dpi=120, layout="constrained")
    _all_methods(figure.subplots(), preset, results, size, label)
    figure.suptitle(preset.title, fontsize=13)
    figure.supxlabel(_caption(results), fontsize=8, color="0.35")
    figure.savefig(path)


def _all_methods(axes: "Axes", preset: Preset, results: Results, size: Size, label: str) -> None:
    from matplotlib.ticker import EngFormatter

    ends: dict[str, list[Place]] = {}
    drawn: list[Place] = []
    for method in methods_run(preset, results):
        kind = family(method)
        points = [
            (size(row), 100 * row["accuracy"])
            for row in mean_points(results, method.name)
            if size(row)
        ]
        if points:
            style: dict[str, Any] = {
                "color": _FAMILIES[kind][1],
                "linewidth": 1.5,
                "markersize": 4,
                "alpha": 0.75,
            }
            axes.plot(*zip(*points, strict=True), "o-" if len(points) > 1 else "D", **style)
            ends.setdefault(kind, []).append(points[-1])
            drawn += points
    axes.set(xlabel=label, ylabel="test accuracy (%)", xscale="log")
    axes.xaxis.set_major_formatter(EngFormatter("B"))
    bare(axes)
    best = {kind: max(points, key=lambda point: point[1]) for kind, points in ends.items()}
    axes.set_ylim(top=axes.get_ylim()[1] + 6)  # room for names
    _label(axes, {_FAMILIES[kind][0]: (point, kind) for kind, point in best.items()}, drawn, 10)


def _close(axes: "Axes", methods: Sequence[Method], results: Results) -> None:
    """Draw final accuracy over the bytes of a sample, with the spread over the seeds."""
    from matplotlib.ticker import ScalarFormatter

    rates = {method.name: bytes_per_sample(results, method.name) for method in methods}
    ours = [rates[method.name] for method in methods if family(method) == "replay"]
    most = _SEEN * max(ours, default=max(rates.values()))
    labels: dict[str, tuple[Place, str]] = {}
    drawn: list[Place] = []
    for method in methods:
        if rates[method.name] > most:
            continue
        accuracies = [*final_percent(results, method.name).values()]
        deviation = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
        kind = family(method)
        place = (rates[method.name], statistics.fmean(accuracies))
        axes.errorbar(*place, yerr=deviation, color=_FAMILIES[kind][1], fmt="o", capsize=3)
        labels[_short(method.name)] = (place, kind)
        parts = (-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1)
        drawn += [(place[0], place[1] + part * deviation) for part in parts]
    axes.set(xlabel="uplink bytes a sample", xscale="log")
    ticks = [tick for tick in (10, 20, 50, 100, 200, 500, 1000, 2000) if tick <= most]
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.minorticks_off()
    bare(axes)
    _label(axes, labels, drawn, 8)


def _short(name: str) -> str:
    """Return a method's name without what its colour says."""
    return name.removeprefix("ours, replay, ").removeprefix("upload ")


def _label(
    axes: "Axes", labels: Mapping[str, tuple[Place, str]], drawn: Sequence[Place], size: float
) -> None:
    """Write names beside their points, where they hide none of what is drawn."""
    from adjustText import adjust_text

    texts = [
        axes.text(*place, name, color=_FAMILIES[kind][1], fontsize=size, fontweight="bold")
        for name, (place, kind) in labels.items()
    ]
    if texts:
        across, up = zip(*drawn, strict=True)
        line = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.6}
        adjust_text(texts, across, up, ax=axes, expand=(1.1, 1.4), arrowprops=line, iter_lim=500)


def _caption(results: Results) -> str:
    """Return how often was measured, and where."""
    seeds = sorted({int(run["seed"]) for run in results.runs})
    machines = sorted({str(run["machine"]) for run in results.runs if run.get("machine")})
    many = f"{len(seeds)} seeds, mean and standard deviation" if len(seeds) > 1 else "one seed"
    return "; ".join([many, *machines])
