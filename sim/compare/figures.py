"""Figures from the raw results of a comparison."""

import statistics
from pathlib import Path

from sim.compare.points import Size, bytes_per_sample, is_replay, methods_run, points_of
from sim.compare.presets import Preset
from sim.compare.results import Results

_MARKERS = "os^vD*Pxph<>"


def plot_accuracy(preset: Preset, results: Results, size: Size, label: str, path: Path) -> None:
    """Plot accuracy against cumulative bytes, a line for each method (mean over seeds)."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(9, 5.5), dpi=150, layout="constrained")
    axes = figure.add_subplot(
        title=preset.title, xlabel=f"{label}, all clients (bytes)", ylabel="test accuracy (%)"
    )
    for number, method in enumerate(methods_run(preset, results)):
        seeds = list(points_of(results, method.name).values())
        steps = range(min(len(rows) for rows in seeds))
        sizes = [statistics.fmean(size(rows[step]) for rows in seeds) for step in steps]
        accuracies = [
            100 * statistics.fmean(rows[step]["accuracy"] for rows in seeds) for step in steps
        ]
        kept = [(x, y) for x, y in zip(sizes, accuracies, strict=True) if x]
        if method.upload:  # paid before the first step: only where it ends says something
            kept = kept[-1:]
        style = "-" if method.name.startswith("ours") else "--"
        axes.plot(
            *zip(*kept, strict=True), marker=_MARKERS[number % len(_MARKERS)], linestyle=style,
            markersize=4, linewidth=2 if style == "-" else 1, color=f"C{number % 10}",
            label=method.name,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter("B"))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path)


def plot_codecs(preset: Preset, results: Results, path: Path) -> None:
    """Plot final accuracy against uplink bytes per sample, for what sends each sample once."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot(
        title=preset.title, xlabel="uplink bytes per sample", ylabel="test accuracy (%)"
    )
    for number, method in enumerate(methods_run(preset, results)):
        if not (method.upload or is_replay(method)):
            continue
        seeds = points_of(results, method.name).values()
        accuracies = [100 * rows[-1]["accuracy"] for rows in seeds]
        deviation = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
        rate = bytes_per_sample(results, method.name)
        axes.errorbar(
            rate, statistics.fmean(accuracies), yerr=deviation, capsize=3,
            marker=_MARKERS[number % len(_MARKERS)], color=f"C{number % 10}", label=method.name,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.grid(alpha=0.3, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8)
    figure.savefig(path)
