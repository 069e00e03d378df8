"""Markdown tables from the raw results of a comparison."""

from collections.abc import Sequence

from sim.compare.codecs import RELATIVE_BYTES, SentOnce, sent_once
from sim.compare.points import (
    Size,
    best_accuracy,
    both_ways,
    common_accuracy,
    final_percent,
    last_values,
    mean,
    methods_run,
    needed_bytes,
    points_of,
    spread,
    uplink,
)
from sim.compare.presets import Preset
from sim.compare.results import Results


def markdown(preset: Preset, results: Results) -> list[str]:
    """Return two tables: all methods beside ours, and those that send each sample once.

    In the first, bytes are in multiples of our first method's: at the highest accuracy that every
    method reaches, and at the best accuracy that both the method and ours reach (if ours has run).
    """
    common, ours = common_accuracy(preset, results), preset.methods[0].name
    shared = f"at {100 * common:.1f} %"
    lines = [
        f"| method | seeds | accuracy % | MB up | MB down | uplink {shared} | up + down {shared} "
        "| uplink at the best accuracy both reach |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method in methods_run(preset, results):
        name = method.name
        best = min(best_accuracy(results, one) for one in (name, ours) if points_of(results, one))
        cells = [
            name,
            str(len(points_of(results, name))),
            spread(final_percent(results, name).values()).replace("+/-", "±"),
            f"{mean(last_values(results, name, 'uplink_bytes')) / 1e6:,.2f}",
            f"{mean(last_values(results, name, 'downlink_bytes')) / 1e6:,.2f}",
            _ratio(results, name, ours, common, uplink),
            _ratio(results, name, ours, common, both_ways),
            f"{_ratio(results, name, ours, best, uplink)} ({100 * best:.1f} %)",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, *_codecs_markdown(sent_once(preset, results))]


def _codecs_markdown(rows: Sequence[SentOnce]) -> list[str]:
    lines = [
        "",
        f"| each sample sent once | bytes per sample | accuracy % | {RELATIVE_BYTES} |",
        "|---|---|---|---|",
    ]
    for row in rows:
        beside = "none" if row.ratio is None else f"{row.ratio:.2f}x ({row.ours})"
        cells = [row.name, f"{row.rate:.1f}", spread(row.accuracies.values()).replace("+/-", "±")]
        lines.append("| " + " | ".join([*cells, beside if row.is_codec else ""]) + " |")
    return lines if rows else []


def _ratio(results: Results, method: str, ours: str, accuracy: float, size: Size) -> str:
    if not points_of(results, ours):
        return "ours has not run"
    needed, own = (needed_bytes(results, name, accuracy, size) for name in (method, ours))
    if needed is None or own is None:
        return "not reached"
    ratio = needed / own
    return f"{ratio:,.0f}x" if ratio >= 10 else f"{ratio:.2f}x"
