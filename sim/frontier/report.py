"""Table and figure of a frontier from its raw points; nothing is trained here."""

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from codec import CodecOptions
from codec.messages import REPLAY
from fl_app.words import size
from sim import tables
from sim.figures import BLUE, GREEN, INK, ORANGE, PURPLE, SKY, YELLOW, bare
from sim.frontier.plans import BUDGET, DATA, LEVERS_BASE, NARROW, OURS, RAW, Data
from sim.frontier.points import Mean, Point, best_within, bytes_for, envelope, means

_OWN = (OURS, BUDGET)
_USUAL_SPEED = CodecOptions().avif_speed
_LONG = 40 * 60  # seconds from which one seed is enough
_COLOURS = {
    OURS: BLUE,
    BUDGET: SKY,
    "AVIF": INK,
    "WebP": "#666666",
    "JPEG XL": "#8c8c8c",
    "JPEG": "#b3b3b3",
}
_OTHERS = (ORANGE, GREEN, PURPLE, YELLOW)  # exchanges of gradients or models


def report(name: str, points: Sequence[Point], folder: Path) -> list[str]:
    """Write ``frontier-<data>.txt``, ``.md`` and ``.png``; return the lines of the first.

    Parameters
    ----------
    name : str
        Key of `sim.frontier.plans.DATA`.
    points : sequence of Point
        At least one.
    folder : Path
    """
    data, everything = DATA[name], means(points)
    found = settled(everything)
    budgets = [*by_budget(data, found), ""] if data.budgets else []
    listed = all_points(without_levers(found))
    if hidden := len(everything) - len(found):
        listed.append(f"left out: {hidden} points of one seed")
    lines = [data.title, "", *budgets, *listed, *levers(data, points)]
    (folder / f"frontier-{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tables_of = [markdown(data, found), markdown_points(found)]
    if levers_table(data, points)[1]:
        tables_of.append(markdown_levers(data, points))
    text = "\n\n".join("\n".join(lines) for lines in tables_of) + "\n"
    (folder / f"frontier-{name}.md").write_text(text, encoding="utf-8")
    plot(data, found, folder / f"frontier-{name}.png")
    return lines


def settled(found: Sequence[Mean]) -> list[Mean]:
    """Return points of two seeds or more, and of one where it took long; all if none has two."""
    known = [mean for mean in found if mean.seeds > 1 or mean.seconds > _LONG]
    return known if any(mean.seeds > 1 for mean in found) else list(found)


def own(found: Sequence[Mean]) -> list[Mean]:
    """Return our points."""
    return [mean for mean in found if mean.method in _OWN]


def without_levers(found: Sequence[Mean]) -> list[Mean]:
    """Return points without those that show what a lever brings: they are shorter trainings."""
    return [mean for mean in found if not mean.method.startswith(f"{OURS} ")]


def codecs(data: Data, found: Sequence[Mean]) -> list[Mean]:
    """Return the points of all image codecs."""
    return [mean for mean in found if mean.method in data.codecs]


def exchanges(data: Data, found: Sequence[Mean]) -> list[Mean]:
    """Return the points of methods whose gradients or models travel."""
    return [mean for mean in found if mean.method in data.baselines]


def rows(data: Data, found: Sequence[Mean]) -> list[tuple[str, ...]]:
    """Return for each budget the goal, ours, the best codec, its bytes over ours, and models'."""
    files, models = codecs(data, found), exchanges(data, found)
    listed: list[tuple[str, ...]] = []
    for budget in data.budgets:
        ours, theirs = best_within(own(found), budget), best_within(files, budget)
        rivals = envelope(one for one in files if ours and _width(one) == _width(ours))
        exchange = best_within(models, budget)
        goal = data.goals.get(budget)
        needed = bytes_for(rivals, ours.accuracy) if ours else None
        ratio = "-"
        if ours and needed:
            ratio = f"{needed / ours.uplink_bytes:.2f}x"
        elif ours and rivals and ours.accuracy > rivals[-1].accuracy:
            least = rivals[-1].uplink_bytes / ours.uplink_bytes
            ratio = f"> {least:.2f}x" if least > 1 else "-"  # else it says nothing
        listed.append(
            (
                size(budget),
                "" if goal is None else f"{100 * goal:.1f}",
                _percent(ours),
                "" if ours is None else size(round(ours.uplink_bytes)),
                "" if ours is None else f"{ours.samples:,.0f}",
                _percent(theirs),
                "" if theirs is None else theirs.method,
                ratio,
                "" if exchange is None else f"{_percent(exchange)} ({exchange.method})",
            )
        )
    return listed


def summary(name: str, points: Sequence[Point]) -> list[str]:
    """Return the rows of budgets that ours and the image codecs use at least half, for the README.

    Of exchanges of gradients or models, which take far more, the best within the budget.
    """
    data, found = DATA[name], settled(means(points))
    models = exchanges(data, found)
    lines = []
    for budget in data.budgets:
        ours, codec, exchange = (
            best_within(of_kind, budget) for of_kind in (own(found), codecs(data, found), models)
        )
        if ours and codec and 2 * min(ours.uplink_bytes, codec.uplink_bytes) >= budget:
            cells = [size(budget), _percent(ours), f"{_percent(codec)} ({codec.method})"]
            if models:
                cells.append(f"{_percent(exchange)} ({exchange.method})" if exchange else "")
            lines.append(f"| {' | '.join(cells)} |")
    heads = [f"{data.title}: uplink at most", "ours", "best image codec"]
    heads += ["gradients or models"] if models else []
    return [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *lines] if lines else []


def _channels(mean: Mean) -> str:
    return str(_width(mean)) if mean.config.get("model") == "resnet9" else ""  # others have none


def _width(measured: Mean | Point) -> object:
    return measured.config.get("width")


_HEADS = (
    *("budget", "goal %", "ours %", "uplink", "samples", "best image codec %", "codec"),
    *("codec's bytes over ours at our accuracy", "best exchange of gradients or models %"),
)


def by_budget(data: Data, found: Sequence[Mean]) -> list[str]:
    """Return the table of budgets, for a terminal."""
    table = tables.numbers(*_HEADS)
    for row in rows(data, found):
        table.add_row(*row)
    return tables.lines(table)


def all_points(found: Sequence[Mean]) -> list[str]:
    """Return a line for each point, for a terminal."""
    table = tables.numbers(
        *("method", "knob", "width", "samples", "B/sample", "up", "accuracy %", "+/-", "seeds"),
        *("steps", "CPU s"),
    )
    for mean in found:
        table.add_row(
            mean.method,
            knob(mean),
            _channels(mean),
            f"{mean.samples:,.0f}",
            f"{mean.uplink_bytes / mean.samples:.1f}" if mean.samples else "",
            size(round(mean.uplink_bytes)),
            f"{100 * mean.accuracy:.2f}",
            "" if math.isnan(mean.deviation) else f"{100 * mean.deviation:.2f}",
            str(mean.seeds),
            f"{mean.steps:,.0f}",
            f"{mean.seconds:.0f}",
        )
    return tables.lines(table)


def levers(data: Data, points: Sequence[Point]) -> list[str]:
    """Return what each lever brings, in pairs of equal seeds, for a terminal; empty without any."""
    head, rows = levers_table(data, points)
    table = tables.numbers(*head)
    for row in rows:
        table.add_row(*row)
    return ["", *tables.lines(table)] if rows else []


def markdown_levers(data: Data, points: Sequence[Point]) -> list[str]:
    """Return the same for the documentation."""
    head, rows = levers_table(data, points)
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def levers_table(
    data: Data, points: Sequence[Point]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return heads and rows of the table of levers: pairs of equal seeds and steps."""
    samples, step = data.ours[0]
    base = {
        _pair_of(point): point
        for point in points
        if _width(point) == NARROW
        and (
            point.method == f"{OURS} {LEVERS_BASE}"
            or (point.method == OURS and (point.samples, point.config["step"]) == data.ours[0])
        )
    }
    rows: list[tuple[str, ...]] = []
    for lever in data.levers:
        pairs: defaultdict[int, list[tuple[Point, Point]]] = defaultdict(list)
        for point in points:
            if point.method == f"{OURS} {lever}" and _pair_of(point) in base:
                pairs[point.steps].append((point, base[_pair_of(point)]))
        for steps, found in sorted(pairs.items()):
            gains = [100 * (changed.accuracy - as_is.accuracy) for changed, as_is in found]
            size_of = fmean(point.uplink_bytes / point.samples for point, _ in found)
            spread = f"{stdev(gains):.2f}" if len(gains) > 1 else ""
            cells = (f"{size_of:.1f}", f"{fmean(gains):+.2f}", spread, str(len(gains)))
            rows.append((lever, f"{steps:,}", *cells))
    title = f"{OURS}, {samples:,} at step {step:g}"
    return (title, "steps", "B/sample", "points", "+/-", "n"), rows


def _pair_of(point: Point) -> tuple[int, int, int]:
    return point.seed, point.recipe, point.steps


def markdown_points(found: Sequence[Mean]) -> list[str]:
    """Return a row for each point, for the documentation."""
    heads = (
        *("method", "rate", "width", "images", "B an image", "uplink", "accuracy %", "seeds"),
        "CPU s",
    )
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for mean in without_levers(found):
        cells = (
            mean.method,
            knob(mean),
            _channels(mean),
            f"{mean.samples:,.0f}",
            f"{mean.uplink_bytes / mean.samples:.1f}" if mean.samples else "",
            size(round(mean.uplink_bytes)),
            _percent(mean),
            str(mean.seeds),
            f"{mean.seconds:.0f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def knob(mean: Mean) -> str:
    """Return what sets the rate of a point."""
    if mean.config.get("strategy", REPLAY) != REPLAY:
        return f"{mean.config['num-rounds']} rounds"
    codec = mean.config["codec"]
    if mean.method == BUDGET:
        rounds = mean.config["num-rounds"]
        in_rounds = f", {rounds} rounds" if rounds > 1 else ""
        return f"budget {size(mean.config['uplink-budget-total'])}{in_rounds}"
    if not mean.method.startswith(OURS) and codec != "lossless":
        speed = mean.config.get("avif-speed", _USUAL_SPEED) if codec == "avif" else _USUAL_SPEED
        of_speed = "" if speed == _USUAL_SPEED else f", speed {speed}"
        return f"quality {mean.config['quality']}{of_speed}"
    tilt = f", tilt {mean.config['tilt']:g}" if mean.config.get("tilt") else ""
    auto = ", auto" if codec == "auto" and mean.method == OURS else ""
    return "" if codec == "lossless" else f"step {mean.config['step']:g}{tilt}{auto}"


def markdown(data: Data, found: Sequence[Mean]) -> list[str]:
    """Return the table of budgets, and published results, for the documentation."""
    lines = ["| " + " | ".join(_HEADS) + " |", "|" + "---|" * len(_HEADS)]
    lines += ["| " + " | ".join(row) + " |" for row in rows(data, found)]
    lines += [
        f"| {size(one.uplink_bytes)} | | {100 * one.accuracy:.1f} (published: {one.name}) "
        "| | | | | | |"
        for one in data.published
    ]
    return lines


def plot(data: Data, found: Sequence[Mean], path: Path) -> None:
    """Plot accuracy against total uplink: points, and the frontier of each method."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.add_subplot(
        title=data.title, xlabel="uplink, all clients (bytes)", ylabel="test accuracy (%)"
    )
    others = itertools.cycle(_OTHERS)
    shown = [mean.method for mean in without_levers(found) if mean.method != RAW]
    for method in dict.fromkeys(shown):
        of_method = [mean for mean in found if mean.method == method]
        colour = _COLOURS.get(method) or next(others)
        frontier = envelope(of_method)
        axes.plot(
            [mean.uplink_bytes for mean in frontier],
            [100 * mean.accuracy for mean in frontier],
            color=colour,
            marker="o",
            markersize=4,
            linewidth=2 if method in _OWN else 1,
            label=method,
        )
        axes.errorbar(
            [mean.uplink_bytes for mean in of_method],
            [100 * mean.accuracy for mean in of_method],
            yerr=[0 if math.isnan(m.deviation) else 100 * m.deviation for m in of_method],
            color=colour,
            fmt=".",
            capsize=2,
            alpha=0.6,
        )
    for one in data.published:
        axes.plot(
            one.uplink_bytes, 100 * one.accuracy, "k*", label=f"{one.name}, published", alpha=0.7
        )
    if data.goals:
        budgets, goals = zip(*data.goals.items(), strict=True)
        axes.plot(budgets, [100 * goal for goal in goals], "x", color=ORANGE, label="goal")
    for mean in found:
        if mean.method == RAW:
            label = f"{RAW}, {size(round(mean.uplink_bytes))}"
            axes.axhline(100 * mean.accuracy, color="#a0a0a0", linestyle=":", label=label)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter("B"))
    bare(axes)
    axes.legend(fontsize=8, frameon=False)
    counts = {mean.seeds for mean in found}
    few, many = min(counts), max(counts)
    seeds = f"{few} to {many} seeds" if many > few else f"{few} seed{'s' * (few > 1)}"
    told = f"{seeds} a point, mean and standard deviation; each trained to the end"
    figure.supxlabel(told, fontsize=8, color="0.35")
    figure.savefig(path)


def _percent(mean: Mean | None) -> str:
    if mean is None:
        return ""
    spread = "" if math.isnan(mean.deviation) else f" ± {100 * mean.deviation:.2f}"
    return f"{100 * mean.accuracy:.2f}{spread}"
