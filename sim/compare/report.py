"""Tables from the raw results of a comparison; nothing is trained here."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sim.compare.figures import plot_accuracy, plot_codecs
from sim.compare.points import (
    Size,
    both_ways,
    bytes_per_sample,
    is_replay,
    methods_run,
    points_of,
    uplink,
)
from sim.compare.presets import Preset
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
    lines = tables(preset, results)
    (folder / f"{preset.name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    table = "\n".join(markdown(preset, results))
    (folder / f"{preset.name}.md").write_text(table + "\n", encoding="utf-8")
    plot_accuracy(preset, results, uplink, "uplink", folder / f"{preset.name}_uplink.png")
    plot_accuracy(
        preset, results, both_ways, "uplink + downlink", folder / f"{preset.name}_total.png"
    )
    if any(method.upload for method in preset.methods):
        plot_codecs(preset, results, folder / f"{preset.name}_codecs.png")
    return lines


def tables(preset: Preset, results: Results) -> list[str]:
    """Return the lines of all tables, for a terminal."""
    lines = [preset.title]
    for part in (summary, bytes_to_reach, against_codecs, message_sizes, tuned):
        found = part(preset, results)
        lines += ["", *found] if found else []
    return lines


def summary(preset: Preset, results: Results) -> list[str]:
    """Return a line for each method: what it reached and what it cost."""
    lines = [
        f"{'method':28}{'accuracy %':>16}{'up MB':>11}{'down MB':>11}{'device s':>10}"
        f"{'server s':>10}{'seeds':>7}"
    ]
    for method in methods_run(preset, results):
        runs = [run for run in results.runs if run["method"] == method.name]
        name = method.name
        lines.append(
            f"{name:28}{_spread(_final(results, name)):>16}"
            f"{_mean(_last(results, name, 'uplink_bytes')) / 1e6:11.3f}"
            f"{_mean(_last(results, name, 'downlink_bytes')) / 1e6:11.3f}"
            f"{_mean(run['device_seconds'] for run in runs):10.1f}"
            f"{_mean(run['server_seconds'] for run in runs):10.1f}{len(runs):7d}"
        )
    return lines


def common_accuracy(preset: Preset, results: Results) -> float:
    """Return the highest accuracy that every method reaches (mean over its seeds), or 0."""
    best = [best_accuracy(results, method.name) for method in methods_run(preset, results)]
    return min(best, default=0.0)


def best_accuracy(results: Results, method: str) -> float:
    """Return the highest accuracy that a method reaches, mean over its seeds."""
    seeds = points_of(results, method).values()
    return _mean(max(row["accuracy"] for row in rows) for rows in seeds)


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
    """Return rate and final accuracy of what sends each sample once, and codecs beside ours.

    For each codec: the ratio of its rate to ours, at the coarsest of our steps that ends at most
    `CODEC_MARGIN` below it.
    """
    methods = methods_run(preset, results)
    codecs = [method.name for method in methods if method.upload]
    ours = [method.name for method in methods if is_replay(method)]
    if not codecs or not ours:
        return []
    rates = {name: bytes_per_sample(results, name) for name in [*ours, *codecs]}
    finals = {name: _final(results, name) for name in rates}
    margin = f"{100 * CODEC_MARGIN:.1f} point"
    lines = [
        f"{'each sample sent once':28}{'B a sample':>12}{'accuracy %':>16}{'ratio':>8}"
        f"  to ours that ends at most {margin} below"
    ]
    for name, rate in rates.items():
        lines.append(f"{name:28}{rate:12.1f}{_spread(finals[name]):>16}")
        if name in codecs:
            enough = _mean(finals[name]) - 100 * CODEC_MARGIN
            equal = [own for own in ours if _mean(finals[own]) >= enough]
            best = min(equal, key=rates.__getitem__, default=None)
            ratio = "" if best is None else f"{rate / rates[best]:.2f}"
            lines[-1] += f"{ratio:>8}  {best or 'none'}"
    return lines


def markdown(preset: Preset, results: Results) -> list[str]:
    """Return the README's table: what each method reached, and its bytes in multiples of ours.

    The common accuracy is the highest that every method reaches. A method that goes beyond it is
    also compared at the best accuracy that both it and ours reach.
    """
    common, ours = common_accuracy(preset, results), preset.methods[0].name
    shared = f"at {100 * common:.1f} %"
    lines = [
        f"| method | seeds | accuracy % | MB up | MB down | up, {shared} | up + down, {shared} "
        "| up, at its best or ours |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method in methods_run(preset, results):
        name = method.name
        best = min(best_accuracy(results, name), best_accuracy(results, ours))
        cells = [
            name,
            str(len(points_of(results, name))),
            _spread(_final(results, name)).replace("+/-", "±"),
            f"{_mean(_last(results, name, 'uplink_bytes')) / 1e6:,.2f}",
            f"{_mean(_last(results, name, 'downlink_bytes')) / 1e6:,.2f}",
            _ratio(results, name, ours, common, uplink),
            _ratio(results, name, ours, common, both_ways),
            f"{_ratio(results, name, ours, best, uplink)} ({100 * best:.1f} %)",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _ratio(results: Results, method: str, ours: str, accuracy: float, size: Size) -> str:
    needed, own = (needed_bytes(results, name, accuracy, size) for name in (method, ours))
    if needed is None or own is None:
        return "not reached"
    ratio = needed / own
    return f"{ratio:,.0f}x" if ratio >= 10 else f"{ratio:.2f}x"


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


def _last(results: Results, method: str, key: str) -> list[float]:
    """Return a value of each seed's last evaluation."""
    return [float(rows[-1][key]) for rows in points_of(results, method).values()]


def _final(results: Results, method: str) -> list[float]:
    """Return each seed's last accuracy in percent."""
    return [100 * accuracy for accuracy in _last(results, method, "accuracy")]


def _mean(values: Any) -> float:
    return float(statistics.fmean(values))


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} +/- {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def _megabytes(value: float | None) -> str:
    return "not reached" if value is None else f"{value / 1e6:,.3f} MB"
