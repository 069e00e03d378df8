"""Tables from the raw results of a comparison; nothing is trained here."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sim.compare.figures import plot_accuracy, plot_codecs
from sim.compare.points import Size, both_ways, bytes_per_sample, methods_run, points_of, uplink
from sim.compare.presets import Method, Preset
from sim.compare.results import Results

CODEC_MARGIN = 0.003  # of accuracy, within which a codec counts as equal to ours


def report(preset: Preset, results: Results, folder: Path) -> list[str]:
    """Write ``<preset>.txt`` and the figures; return the lines of the table.

    Parameters
    ----------
    preset : Preset
    results : Results
        Methods that were not run yet are left out.
    folder : Path
    """
    parts = [summary, bytes_to_reach, against_codecs, message_sizes, tuned]
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


def summary(preset: Preset, results: Results) -> list[str]:
    """Return a line for each method: what it reached and what it cost."""
    lines = [
        f"{'method':28}{'accuracy %':>16}{'up MB':>11}{'down MB':>11}{'device s':>10}"
        f"{'server s':>10}{'seeds':>7}"
    ]
    for method in methods_run(preset, results):
        runs = [run for run in results.runs if run["method"] == method.name]
        accuracies = _last(results, method, "accuracy")
        lines.append(
            f"{method.name:28}{_spread([100 * value for value in accuracies]):>16}"
            f"{_mean(_last(results, method, 'uplink_bytes')) / 1e6:11.3f}"
            f"{_mean(_last(results, method, 'downlink_bytes')) / 1e6:11.3f}"
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
    """Return the bytes each method needs for the common accuracy and others, and the ratios.

    The last column compares a method's uplink alone with both directions of ours: what is left
    of the ratio if its downlink were free, whatever broadcast it might be given.
    """
    common = common_accuracy(preset, results)
    targets = sorted({round(share * common, 3) for share in (0.9, 0.95)} | {common})
    ours = preset.methods[0].name
    columns: list[tuple[str, float, Size, Size]] = [
        (f"up, {100 * target:.1f} %", target, uplink, uplink) for target in targets
    ]
    columns.append((f"both, {100 * common:.1f} %", common, both_ways, both_ways))
    columns.append(("its up to our both", common, uplink, both_ways))
    lines = [
        f"bytes to reach an accuracy (ratio to {ours!r}); all reach {100 * common:.1f} %",
        f"{'method':28}" + "".join(f"{title:>28}" for title, *_ in columns),
    ]
    base = [needed_bytes(results, ours, target, size) for _, target, _, size in columns]
    for method in methods_run(preset, results):
        cells = []
        for (_, target, size, _), own in zip(columns, base, strict=True):
            needed = needed_bytes(results, method.name, target, size)
            ratio = f" ({needed / own:,.3g}x)" if needed and own else ""
            cells.append(f"{_megabytes(needed) + ratio:>28}")
        lines.append(f"{method.name:28}" + "".join(cells))
    return lines


def against_codecs(preset: Preset, results: Results) -> list[str]:
    """Return rate and final accuracy of what sends each sample once, and the ratio to ours."""
    methods = [m for m in methods_run(preset, results) if m.upload or m == preset.methods[0]]
    if len(methods) < 2 or methods[0].upload:
        return []
    rates = {m.name: bytes_per_sample(results, m.name) for m in methods}
    finals = {m.name: _mean(_last(results, m, "accuracy")) for m in methods}
    ours = methods[0].name
    lines = [f"{'each sample sent once':28}{'B a sample':>14}{'ratio':>8}{'points to ours':>16}"]
    for name, rate in rates.items():
        gap = 100 * (finals[name] - finals[ours])
        lines.append(f"{name:28}{rate:14.1f}{rate / rates[ours]:8.2f}{gap:16.2f}")
    enough = finals[ours] - CODEC_MARGIN
    equal = [method.name for method in methods[1:] if finals[method.name] >= enough]
    margin = f"at most {100 * CODEC_MARGIN:.1f} point below ours"
    if not equal:
        return [*lines, f"no image codec of the preset ends {margin}"]
    best = min(equal, key=rates.__getitem__)
    return [*lines, f"cheapest {margin}: {best}, {rates[best] / rates[ours]:.2f}x our bytes"]


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


def _values(config: Mapping[str, Any]) -> str:
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


def _last(results: Results, method: Method, key: str) -> list[float]:
    """Return a value of each seed's last evaluation."""
    return [float(rows[-1][key]) for rows in points_of(results, method.name).values()]


def _mean(values: Any) -> float:
    return float(statistics.fmean(values))


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} +/- {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def _megabytes(value: float | None) -> str:
    return "not reached" if value is None else f"{value / 1e6:,.3f} MB"
