"""Figures from the raw results of a comparison."""

import statistics
from pathlib import Path
from typing import Any

from sim.compare.points import (
    Size,
    bytes_per_sample,
    final_percent,
    is_replay,
    mean_points,
    methods_run,
)
from sim.compare.presets import Method, Preset
from sim.compare.results import Results

_MARKERS = "os^vD*Pphd<>"
# Kind of method -> colour map, and the range of it that its methods take.
_COLOURS = {
    "ours": ("Blues", 1.0, 0.55),
    "gradient": ("autumn", 0.0, 0.7),
    "fedavg": ("Greens", 0.9, 0.5),
    "upload": ("Greys", 1.0, 0.45),
}


def _styles(preset: Preset) -> dict[str, dict[str, Any]]:
    """Return colour, marker and line of each method, by name."""
    import matplotlib

    kinds: dict[str, list[str]] = {kind: [] for kind in _COLOURS}
    for method in preset.methods:
        kinds[_kind(method)].append(method.name)
    styles = {}
    for kind, names in kinds.items():
        colours, first, last = _COLOURS[kind]
        for number, name in enumerate(names):
            shade = first + (last - first) * number / max(1, len(names) - 1)
            styles[name] = {
                "color": matplotlib.colormaps[colours](shade),
                "marker": _MARKERS[number % len(_MARKERS)],
                "linestyle": "-" if kind == "ours" else "--",
                "linewidth": 2 if kind == "ours" else 1,
                "markersize": 5,
                "label": name,
            }
    return styles


def _kind(method: Method) -> str:
    if method.is_image_codec:
        return "upload"
    strategy = str(method.config.get("strategy", "replay"))
    return strategy if strategy in _COLOURS else "ours"


def plot_accuracy(preset: Preset, results: Results, size: Size, label: str, path: Path) -> None:
    """Plot accuracy against cumulative bytes, a line for each method (mean over seeds)."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(9, 5.5), dpi=150, layout="constrained")
    axes = figure.add_subplot(
        title=preset.title, xlabel=f"{label}, all clients (bytes)", ylabel="test accuracy (%)"
    )
    styles = _styles(preset)
    for method in methods_run(preset, results):
        points = mean_points(results, method.name)
        kept = [(size(row), 100 * row["accuracy"]) for row in points if size(row)]
        axes.plot(*zip(*kept, strict=True), **styles[method.name])
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter("B"))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path)


def plot_codecs(preset: Preset, results: Results, path: Path) -> None:
    """Plot final accuracy against bytes per sample, of the methods that send each sample once."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot(
        title=preset.title, xlabel="uplink bytes per sample", ylabel="test accuracy (%)"
    )
    styles = _styles(preset)
    for method in methods_run(preset, results):
        if not is_replay(method):
            continue
        accuracies = [*final_percent(results, method.name).values()]
        deviation = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
        rate = bytes_per_sample(results, method.name)
        axes.errorbar(
            rate, statistics.fmean(accuracies), yerr=deviation, capsize=3, **styles[method.name]
        )
    axes.set_xscale("log")
    axes.grid(alpha=0.3, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8)
    figure.savefig(path)
