"""Tables and figures from the raw results of a comparison; nothing is trained here."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sim.compare.presets import Method, Preset
from sim.compare.runner import Results

Row = dict[str, Any]
Size = Callable[[Row], int]


def uplink(point: Row) -> int:
    """Return bytes from the clients to the server, so far."""
    return int(point["uplink_bytes"])


def both_ways(point: Row) -> int:
    """Return bytes in both directions, so far."""
    return int(point["uplink_bytes"] + point["downlink_bytes"])


def report(preset: Preset, results: Results, folder: Path) -> list[str]:
    """Write ``<preset>.txt`` and the figures; return the lines of the table.

    Parameters
    ----------
    preset : Preset
    results : Results
        Methods that were not run yet are left out.
    folder : Path
    """
    parts = [summary, bytes_to_reach, message_sizes, tuned]
    lines = [preset.title]
    for part in parts:
        found = part(preset, results)
        lines += ["", *found] if found else []
    (folder / f"{preset.name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    plot_accuracy(preset, results, uplink, "uplink", folder / f"{preset.name}_uplink.png")
    plot_accuracy(
        preset, results, both_ways, "uplink + downlink", folder / f"{preset.name}_total.png"
    )
    if any(method.upload for method in preset.methods):
        plot_codecs(preset, results, folder / f"{preset.name}_codecs.png")
    return lines


def methods_run(preset: Preset, results: Results) -> list[Method]:
    """Return the preset's methods that have results."""
    names = {run["method"] for run in results.runs}
    return [method for method in preset.methods if method.name in names]


def points_of(results: Results, method: str) -> dict[int, list[Row]]:
    """Return a method's points by seed, in order of their steps."""
    seeds: dict[int, list[Row]] = {}
    for point in results.points:
        if point["method"] == method:
            seeds.setdefault(point["seed"], []).append(point)
    return {seed: sorted(rows, key=lambda row: row["step"]) for seed, rows in seeds.items()}


def summary(preset: Preset, results: Results) -> list[str]:
    """Return a line for each method: what it reached and what it cost."""
    lines = [
        f"{'method':28}{'accuracy %':>16}{'up MB':>11}{'down MB':>11}{'device s':>10}"
        f"{'server s':>10}{'seeds':>7}"
    ]
    for method in methods_run(preset, results):
        last = [rows[-1] for rows in points_of(results, method.name).values()]
        runs = [run for run in results.runs if run["method"] == method.name]
        lines.append(
            f"{method.name:28}{_spread([100 * row['accuracy'] for row in last]):>16}"
            f"{_mean(row['uplink_bytes'] for row in last) / 1e6:11.3f}"
            f"{_mean(row['downlink_bytes'] for row in last) / 1e6:11.3f}"
            f"{_mean(run['device_seconds'] for run in runs):10.1f}"
            f"{_mean(run['server_seconds'] for run in runs):10.1f}{len(runs):7d}"
        )
    return lines


def common_accuracy(preset: Preset, results: Results) -> float:
    """Return the highest accuracy that every method reaches (mean over its seeds), or 0."""
    best = [
        _mean(max(row["accuracy"] for row in rows) for rows in seeds.values())
        for seeds in (points_of(results, m.name) for m in methods_run(preset, results))
        if seeds
    ]
    return min(best, default=0.0)


def bytes_to_reach(preset: Preset, results: Results) -> list[str]:
    """Return the bytes each method needs for the common accuracy and others, and the ratios."""
    common = common_accuracy(preset, results)
    targets = sorted({round(share * common, 3) for share in (0.9, 0.95)} | {common})
    ours = preset.methods[0].name
    lines = [
        f"bytes to reach an accuracy (ratio to {ours!r}); the last is what every method reaches",
        f"{'method':28}" + "".join(f"{f'up, {100 * target:.1f} %':>24}" for target in targets)
        + f"{f'both, {100 * common:.1f} %':>24}",
    ]  # fmt: skip
    columns: list[tuple[float, Size]] = [(target, uplink) for target in targets]
    columns.append((common, both_ways))
    base = [needed_bytes(results, ours, target, size) for target, size in columns]
    for method in methods_run(preset, results):
        cells = []
        for (target, size), own in zip(columns, base, strict=True):
            needed = needed_bytes(results, method.name, target, size)
            ratio = f" ({needed / own:,.3g}x)" if needed and own else ""
            cells.append(f"{_megabytes(needed) + ratio:>24}")
        lines.append(f"{method.name:28}" + "".join(cells))
    return lines


def message_sizes(preset: Preset, results: Results) -> list[str]:
    """Return a line for each rival: bytes of a client's message, as they are and in theory."""
    rows = {row["method"]: row for row in results.sizes}
    lines = [
        f"{'a message (a gradient)':28}{'serialized B':>14}{'by textbook':>14}{'ratio':>8}"
        f"{'by entropy':>14}{'ratio':>8}"
    ]
    for method in methods_run(preset, results):
        if method.name in rows:
            row = rows[method.name]
            line = f"{method.name:28}{row['serialized_bytes']:14,d}"
            for key in ("textbook_bytes", "entropy_bytes"):
                line += f"{row[key]:14,.0f}{row['serialized_bytes'] / row[key]:8.3f}"
            lines.append(line)
    return lines if len(lines) > 1 else []


def tuned(preset: Preset, results: Results) -> list[str]:
    """Return a line for each search over hyperparameters: what was tried, and the winner."""
    lines = []
    for method in methods_run(preset, results):
        trials = [trial for trial in results.trials if trial["method"] == method.name]
        if trials:
            best = max(trials, key=lambda trial: trial["accuracy"])
            tried = ", ".join(
                f"{_values(trial['config'])}: {100 * trial['accuracy']:.2f} %"
                + (" <" if trial is best else "")
                for trial in trials
            )
            lines.append(f"{method.name:28}{tried}")
    return [f"tuned in {_trial_steps(results)} steps (< wins)", *lines] if lines else []


def _trial_steps(results: Results) -> str:
    """Return the steps of the searches."""
    return " or ".join(str(steps) for steps in sorted({row["steps"] for row in results.trials}))


def _values(config: Row) -> str:
    return " ".join(f"{key}={value}" for key, value in config.items())


def needed_bytes(results: Results, method: str, accuracy: float, size: Size) -> float | None:
    """Return the bytes at which a method first reaches an accuracy, mean over its seeds.

    None if a seed never does. No interpolation: the bytes of the first evaluation that did.
    """
    needed = []
    for rows in points_of(results, method).values():
        reached = [size(row) for row in rows if row["accuracy"] >= accuracy]
        needed.append(reached[0] if reached else None)
    found = [value for value in needed if value is not None]
    # A mean over seeds that just misses the common accuracy in one of them is still its own.
    return _mean(found) if found and 2 * len(found) > len(needed) else None


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
        sizes = [_mean(size(rows[step]) for rows in seeds) for step in steps]
        accuracies = [100 * _mean(rows[step]["accuracy"] for rows in seeds) for step in steps]
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
        if not method.upload and method.config.get("strategy", "replay") != "replay":
            continue
        runs = [run for run in results.runs if run["method"] == method.name]
        last = [rows[-1] for rows in points_of(results, method.name).values()]
        rates = [
            row["uplink_bytes"] / run["samples_sent"] for row, run in zip(last, runs, strict=True)
        ]
        accuracies = [100 * row["accuracy"] for row in last]
        deviation = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
        axes.errorbar(
            _mean(rates), _mean(accuracies), yerr=deviation, capsize=3,
            marker=_MARKERS[number % len(_MARKERS)], color=f"C{number % 10}", label=method.name,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.grid(alpha=0.3, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8)
    figure.savefig(path)


_MARKERS = "os^vD*Pxph<>"


def _mean(values: Any) -> float:
    return float(statistics.fmean(values))


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} +/- {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def _megabytes(value: float | None) -> str:
    return "not reached" if value is None else f"{value / 1e6:,.3f} MB"
