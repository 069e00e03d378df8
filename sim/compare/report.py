"""Tables and figures from the raw results of a comparison; nothing is trained here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sim.compare.codecs import against_codecs
from sim.compare.figures import plot_accuracy, plot_overview
from sim.compare.markdown import markdown
from sim.compare.points import (
    Size,
    both_ways,
    common_accuracy,
    final_percent,
    last_values,
    mean,
    methods_run,
    needed_bytes,
    spread,
    uplink,
)
from sim.compare.presets import Preset
from sim.compare.results import Results


def report(preset: Preset, results: Results, folder: Path) -> list[str]:
    """Write ``<preset>.txt``, ``<preset>.md`` and the figures; return the lines of the first.

    Parameters
    ----------
    preset : Preset
    results : Results
        Methods that have not been run are left out.
    folder : Path
    """
    lines = tables(preset, results)
    (folder / f"{preset.name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    table = "\n".join(markdown(preset, results))
    (folder / f"{preset.name}.md").write_text(table + "\n", encoding="utf-8")
    plot_overview(preset, results, folder / f"{preset.name}.png")
    total = folder / f"{preset.name}_total.png"
    plot_accuracy(preset, results, both_ways, "uplink and downlink of all clients", total)
    return lines


def tables(preset: Preset, results: Results) -> list[str]:
    """Return the lines of all tables, for a terminal."""
    lines = [preset.title]
    for part in (summary, bytes_to_reach, against_codecs, message_sizes, tuned):
        found = part(preset, results)
        lines += ["", *found] if found else []
    return lines


def summary(preset: Preset, results: Results) -> list[str]:
    """Return a line for each method: accuracy, bytes and seconds."""
    lines = [
        f"{'method':28}{'accuracy %':>16}{'up MB':>11}{'down MB':>11}{'device s':>10}"
        f"{'server s':>10}{'seeds':>7}"
    ]
    for method in methods_run(preset, results):
        runs = [run for run in results.runs if run["method"] == method.name]
        name = method.name
        lines.append(
            f"{name:28}{spread(final_percent(results, name).values()):>16}"
            f"{mean(last_values(results, name, 'uplink_bytes')) / 1e6:11.3f}"
            f"{mean(last_values(results, name, 'downlink_bytes')) / 1e6:11.3f}"
            f"{mean(run['device_seconds'] for run in runs):10.1f}"
            f"{mean(run['server_seconds'] for run in runs):10.1f}{len(runs):7d}"
        )
    return lines


def bytes_to_reach(preset: Preset, results: Results) -> list[str]:
    """Return the bytes that each method needs to reach accuracies, and their ratios to ours.

    The last column divides a method's uplink alone by both directions of ours: the ratio if the
    method's downlink cost nothing, by whatever kind of broadcast.
    """
    common = common_accuracy(preset, results)
    targets = sorted({round(share * common, 3) for share in (0.9, 0.95)} | {common})
    ours = preset.methods[0].name
    columns: list[tuple[str, float, Size, Size]] = [
        (f"up, {100 * target:.1f} %", target, uplink, uplink) for target in targets
    ]
    columns.append((f"up + down, {100 * common:.1f} %", common, both_ways, both_ways))
    columns.append(("up, to our up + down", common, uplink, both_ways))
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


def message_sizes(preset: Preset, results: Results) -> list[str]:
    """Return a line for each compressor: bytes of a client's message, measured and in theory."""
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
    """Return a line for each search over hyperparameters: the values tried, and the best."""
    lines = []
    for method in methods_run(preset, results):
        trials = [trial for trial in results.trials if trial["method"] == method.name]
        if trials:
            lengths = sorted({trial["steps"] for trial in trials})
            longest = [trial for trial in trials if trial["steps"] == lengths[-1]]
            best = max(longest, key=lambda trial: trial["accuracy"])
            stages = [
                f"{steps} steps: "
                + ", ".join(
                    f"{_values(trial['config'])}: {100 * trial['accuracy']:.2f} %"
                    + (" <" if trial is best else "")
                    for trial in trials
                    if trial["steps"] == steps
                )
                for steps in lengths
            ]
            lines.append(f"{method.name:28}{'; '.join(stages)}")
    return ["tuned (< is best)", *lines] if lines else []


def _values(config: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in config.items())


def _megabytes(value: float | None) -> str:
    return "not reached" if value is None else f"{value / 1e6:,.3f} MB"
