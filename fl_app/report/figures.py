"""Drawings as SVG, drawn by matplotlib in colours that the page's style sheet sets."""

import io
import re
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fl_app.words import size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import Locator
    from matplotlib.typing import RcKeyType

# Stand-ins for what light and dark pages set to different colours. The series are those of Okabe
# and Ito, which the colour-blind tell apart; they differ in marker and line, too.
INK, MUTED, GRID = "#010101", "#020202", "#030303"
SERIES = tuple(f"#0404{number:02x}" for number in range(1, 9))
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid"} | {
    colour: f"--series-{number}" for number, colour in enumerate(SERIES, start=1)
}
_MARKERS, _LINES = "osD^vPX*", ("-", "--", "-.", ":")
_SIZE = (4.6, 3.0)  # inches; 10 points on a phone are then 10 pixels
_LOG_FROM = 20.0  # ratio of the largest to the smallest from which an axis is logarithmic

_STYLE: "dict[RcKeyType, Any]" = {
    "svg.fonttype": "none",  # text stays text: it can be read aloud and searched
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.parse_math": False,  # names of classes are no formulas
}


@dataclass(frozen=True)
class Line:
    """Points of one run; those with a gap in x or y are left out.

    Attributes
    ----------
    label : str
    rounds : sequence of int
    x, y : sequence of float
    """

    label: str
    rounds: Sequence[int]
    x: Sequence[float]
    y: Sequence[float]


def lines(
    found: Sequence[Line],
    xlabel: str,
    ylabel: str,
    title: str,
    *,
    in_bytes: bool = False,
    references: Mapping[str, float] | None = None,
) -> str:
    """Draw lines; `references` are vertical lines with what they mean."""
    with _axes(title, xlabel, ylabel) as (figure, axes):
        references = references or {}
        for number, line in enumerate(found):
            colour = SERIES[number % len(SERIES)]
            marker, style = _MARKERS[number % len(_MARKERS)], _LINES[number % len(_LINES)]
            axes.plot(line.x, line.y, style, color=colour, linewidth=1.6, label=line.label)
            for server_round, x, y in zip(line.rounds, line.x, line.y, strict=True):
                (point,) = axes.plot([x], [y], marker, color=colour, markersize=5)
                point.set_gid(f"point-round-{server_round}-of-{number}")
        if in_bytes:
            _byte_axis(axes, [x for line in found for x in line.x] + list(references.values()))
        for number, (label, x) in enumerate(references.items()):
            axes.axvline(x, color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
            axes.annotate(
                label, (x, 0.04 + 0.48 * (number % 2)), xycoords=axes.get_xaxis_transform(),
                xytext=(-3, 0), textcoords="offset points", ha="right", rotation=90,
                fontsize=8, color=MUTED,
            )  # fmt: skip
        if len(found) > 1:
            _legend(figure)
        if not in_bytes:
            axes.xaxis.set_major_locator(_few_ticks(whole=True))
        axes.margins(y=0.08)
        return _svg(figure, title)


def bars(
    labels: Sequence[str],
    series: Mapping[str, Sequence[float]],
    xlabel: str,
    title: str,
    *,
    in_bytes: bool = False,
    stacked: bool = False,
) -> str:
    """Draw horizontal bars, the first at the top; several series side by side, or stacked."""
    rows = len(labels)
    height = 1.1 + (0.24 if stacked else 0.16 * len(series) + 0.08) * max(rows, 2)
    with _axes(title, xlabel, "", (_SIZE[0], max(1.7, height))) as (figure, axes):
        thick = 0.8 if stacked else 0.8 / len(series)
        left = [0.0] * rows
        for number, (label, values) in enumerate(series.items()):
            shift = 0.0 if stacked else (number - (len(series) - 1) / 2) * thick
            drawn = axes.barh(
                [row + shift for row in range(rows)], values, thick, left=left,
                color=SERIES[number % len(SERIES)], label=label,
            )  # fmt: skip
            if number % 2 and stacked:
                for bar in drawn:
                    bar.set_alpha(0.75)
            if stacked:
                left = [a + b for a, b in zip(left, values, strict=True)]
            elif len(series) == 1 and rows <= 24:
                for row, value in enumerate(values):
                    text = size(value) if in_bytes else f"{value:,.3g}"
                    axes.annotate(
                        text, (value, row), xytext=(4, 0), textcoords="offset points",
                        va="center", fontsize=8.5, color=INK,
                    )  # fmt: skip
        axes.set_yticks(range(rows), labels)
        axes.invert_yaxis()
        axes.set_xlim(0, max([*left, *(v for values in series.values() for v in values)], default=0)
                      * (1.18 if len(series) == 1 else 1.05) or 1)  # fmt: skip
        if in_bytes:
            axes.xaxis.set_major_formatter(lambda value, _: size(value))
        axes.xaxis.set_major_locator(_few_ticks())
        axes.grid(visible=False, axis="y")
        if len(series) > 1:
            _legend(figure)
        return _svg(figure, title)


def histogram(series: Mapping[str, Sequence[float]], xlabel: str, title: str) -> str:
    """Draw how some numbers are distributed, a share of each series in each bin."""
    with _axes(title, xlabel, "share of them (%)") as (figure, axes):
        for number, (label, values) in enumerate(series.items()):
            axes.hist(
                values, bins=12, weights=[100 / len(values)] * len(values), histtype="step",
                range=_range([v for some in series.values() for v in some]),
                color=SERIES[number], linestyle=_LINES[number], linewidth=1.8, label=label,
            )  # fmt: skip
        if len(series) > 1:
            _legend(figure)
        return _svg(figure, title)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _byte_axis(axes: "Axes", values: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    positive = [value for value in values if value > 0]
    if positive and max(positive) > _LOG_FROM * min(positive):
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(_few_ticks())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size(value)))


def _few_ticks(*, whole: bool = False) -> "Locator":
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(8 if whole else 5, integer=whole)


def _legend(figure: "Figure") -> None:
    figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=9.5, labelcolor=INK)


@contextmanager
def _axes(
    title: str, xlabel: str, ylabel: str, inches: tuple[float, float] = _SIZE
) -> Iterator[tuple["Figure", "Axes"]]:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**_STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=inches, layout="constrained")
        axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel)
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        yield figure, axes


def _svg(figure: "Figure", title: str) -> str:
    """Return a figure as an element of a page, its ids its own and its colours the page's."""
    from markupsafe import escape

    buffer = io.StringIO()
    with warnings.catch_warnings():  # of letters that only the browser's fonts have
        warnings.simplefilter("ignore", UserWarning)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.S)
    prefix = f"f{zlib.crc32((title + text).encode()):08x}-"
    text = re.sub(r'\bid="point-(round-\d+)-of-\d+"', r'class="\1"', text)
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{prefix}", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r"font: (\d[\d.]*px) [^;\"]*", r"font-size: \1", text)
    view = re.search(r'viewBox="([^"]*)"', text)
    assert view is not None
    return (
        f'<svg viewBox="{view[1]}" role="img" aria-label="{escape(title)}" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink">{text[text.index(">") + 1 :]}'
    )
