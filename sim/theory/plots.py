"""Figures of the theory checks."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.figures import bare
from sim.theory.convergence import TOLERANCE, Run, window_means, windows
from sim.theory.problems import PROBLEMS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[dict[str, Any]]

_COLORS = {2: "tab:red", 4: "tab:blue", 8: "tab:green"}
_LINES = {"stochastic": "--", "dithered": "-"}
_MARKERS = {"none": "o", "qsgd": "s", "dither-variance": "^"}
_NAMES = {"none": "not refined", "qsgd": "refined (QSGD)", "dither-variance": "variance corrected"}


def plot_convergence(runs: Sequence[Run], rows: Rows, path: Path) -> None:
    """Plot the measure against the step: a column per problem, a row without and with refinement.

    Lines are geometric means over the seeds; dotted ones are where biased methods end.
    """
    from matplotlib.ticker import NullFormatter

    problems = list(dict.fromkeys(run.problem for run in runs))
    figure = _figure(4.0 * len(problems) + 2, 7.2)
    grid = figure.subplots(2, len(problems), sharex=True, sharey="col", squeeze=False)
    for column, problem in enumerate(problems):
        of_problem = [run for run in runs if run.problem == problem]
        for refined in (False, True):
            axes = grid[int(refined), column]
            _plot_lines(axes, of_problem, refined)
            if not refined:
                _plot_floors(axes, [row for row in rows if row["problem"] == problem])
            title = f"{problem}, {'refined or corrected' if refined else 'not refined'}"
            axes.set(title=title, ylabel=PROBLEMS[problem].measure_label, xscale="log")
            axes.set_yscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
            if refined:
                axes.set_xlabel("SGD step (window centre)")
            bare(axes)
    # The first problem's panels, least squares, have all methods.
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    figure.legend(*grid[1, 0].get_legend_handles_labels(), loc="outside right lower", fontsize=7)
    figure.savefig(path)


def _plot_lines(axes: "Axes", runs: Sequence[Run], refined: bool) -> None:
    centres, _ = windows(runs[0].measures.shape[1])
    means = np.exp(np.mean([np.log(window_means(run)) for run in runs], axis=0))
    for method, line in zip(runs[0].methods, means, strict=True):
        if method.quantizer == "none":
            axes.plot(centres, line, color="black", linewidth=3, alpha=0.35, label="full precision")
        elif refined == method.unbiased:
            axes.plot(
                centres, line, _LINES[method.quantizer], color=_COLORS[method.bits],
                marker=_MARKERS[method.refinement], markersize=3, linewidth=1,
                label=f"{method.bits} bits, {method.quantizer}"
                + (f", {_NAMES[method.refinement]}" if refined else ""),
            )  # fmt: skip


def _plot_floors(axes: "Axes", rows: Rows) -> None:
    """Mark the floors that the data come near to."""
    bottom = min(row["final"] for row in rows) / 3
    for row in rows:
        if row["floor"] is not None and row["floor"] > bottom:
            label = f"floor in theory, {row['bits']} bits, {row['quantizer']}"
            color = _COLORS[row["bits"]]
            axes.axhline(row["floor"], color=color, linestyle=":", linewidth=1, label=label)


def plot_slopes(rows: Rows, path: Path) -> None:
    """Plot each method's slope less that of full precision, with 95 % intervals."""
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    figure = _figure(4.2 * len(problems), 4.4)
    grid = figure.subplots(1, len(problems), squeeze=False, sharey=True)[0]
    labels = [_label(row) for row in rows if row["problem"] == problems[0] and row["bits"] < 32]
    for axes, problem in zip(grid, problems, strict=True):
        chosen = [row for row in rows if row["problem"] == problem]
        axes.axvspan(-TOLERANCE, TOLERANCE, color="black", alpha=0.08, label=f"±{TOLERANCE}")
        axes.axvline(0, color="black", linewidth=0.8)
        for row in chosen[1:]:
            height = labels.index(_label(row))
            axes.plot([row["gap_low"], row["gap_high"]], [height] * 2, color=_COLORS[row["bits"]])
            axes.plot(row["gap"], height, _MARKERS[row["refinement"]], color=_COLORS[row["bits"]])
            if not row["within_tolerance"]:
                cause = (
                    "biased: ends at a floor" if row["refinement"] == "none" else "more variance"
                )
                axes.annotate(
                    cause, (row["gap"], height), xytext=(0, 5), textcoords="offset points",
                    ha="center", fontsize=6,
                )  # fmt: skip
        axes.set_title(f"{problem}\n(full precision: slope {chosen[0]['slope']:.2f})")
        axes.set_xlabel("slope less that of full precision")
        bare(axes)
    grid[0].set_yticks(range(len(labels)), labels, fontsize=7)
    grid[0].invert_yaxis()
    grid[0].legend(fontsize=7)
    figure.savefig(path)


def _label(row: dict[str, Any]) -> str:
    return f"{row['bits']} bits, {row['quantizer']}, {_NAMES[row['refinement']]}"


def plot_bytes(rows: Rows, path: Path) -> None:
    """Plot uplink bytes per client and round against the number of parameters."""
    figure = _figure(6.4, 4.2)
    axes = figure.add_subplot()
    for method in dict.fromkeys(row["method"] for row in rows):
        points = [(row["n"], row["uplink_bytes"]) for row in rows if row["method"] == method]
        axes.plot(*zip(*points, strict=True), "o-", markersize=4, label=method)
    axes.set(
        xscale="log", yscale="log", xlabel="parameters of the model, n",
        ylabel="uplink per client and round (bytes)",
    )  # fmt: skip
    axes.legend(fontsize=8)
    bare(axes)
    figure.savefig(path)


def plot_variance(rows: Rows, sampling: dict[str, float], path: Path) -> None:
    """Plot the variance of the estimate against bits, a panel per problem.

    Parameters
    ----------
    rows : sequence of dict
        From `sim.theory.variance.variance_rows`.
    sampling : dict
        Variance of sampling a minibatch of equal size, by problem.
    path : Path
    """
    figure = _figure(4.2 * len(sampling), 4.0)
    grid = figure.subplots(1, len(sampling), squeeze=False)[0]
    for axes, (problem, level) in zip(grid, sampling.items(), strict=True):
        chosen = [row for row in rows if row["problem"] == problem]
        for key in dict.fromkeys((row["quantizer"], row["refinement"]) for row in chosen):
            points = [
                (row["bits"], 10 * np.log10(row["variance"]))
                for row in chosen
                if (row["quantizer"], row["refinement"]) == key
            ]
            axes.plot(
                *zip(*points, strict=True), _LINES[key[0]] + _MARKERS[key[1]], markersize=4,
                label=f"{key[0]}, {_NAMES[key[1]]}",
            )  # fmt: skip
        low, high = min(row["bits"] for row in chosen), max(row["bits"] for row in chosen)
        start = max(10 * np.log10(row["variance"]) for row in chosen) + 3
        slope = 20 * np.log10(2)
        axes.plot([low, high], [start, start - slope * (high - low)], color="black",
                  linewidth=0.8, label="-6.02 dB per bit")  # fmt: skip
        axes.axhline(10 * np.log10(level), color="black", linestyle=":", label="minibatch sampling")
        axes.set(title=problem, xlabel="bits per feature", ylabel="variance of the estimate (dB)")
        bare(axes)
    grid[0].legend(fontsize=7)
    figure.savefig(path)


def plot_bias(rows: Rows, path: Path) -> None:
    """Plot the estimate's largest deviation from the gradient in standard errors, with the bound.

    A panel per problem; a method below the bound is not told from an unbiased one.
    """
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    figure = _figure(4.2 * len(problems), 4.0)
    grid = figure.subplots(1, len(problems), squeeze=False, sharey=True)[0]
    for axes, problem in zip(grid, problems, strict=True):
        chosen = [row for row in rows if row["problem"] == problem]
        for key in dict.fromkeys((row["quantizer"], row["refinement"]) for row in chosen):
            points = [
                (row["bits"], row["largest_deviation"])
                for row in chosen
                if (row["quantizer"], row["refinement"]) == key
            ]
            axes.plot(
                *zip(*points, strict=True), _LINES[key[0]] + _MARKERS[key[1]], markersize=4,
                label=f"{key[0]}, {_NAMES[key[1]]}",
            )  # fmt: skip
        axes.axhline(rows[0]["bound"], color="black", linestyle=":", label="CLT bound")
        axes.set(title=problem, yscale="log", xlabel="bits per feature")
        bare(axes)
    grid[0].set_ylabel("largest deviation of the mean\nover coordinates (standard errors)")
    grid[0].legend(fontsize=7)
    figure.savefig(path)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure  # draws with Agg, without a display

    return Figure(figsize=(width, height), dpi=150, layout="constrained")
