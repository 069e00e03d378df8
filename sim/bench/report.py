"""Measure sections of the bench, keep them in ``bench.json``, and print and draw what is there."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fl_app.data import Images, load
from sim.bench import coding, rounds, startup, training
from sim.bench.spread import Spread
from sim.figures import BLUE, ORANGE, bare
from sim.scale import read_rows

FILE, FIGURE = "bench.json", "bench.png"
_FEW = 3  # runs of what starts an engine
# Clients, model, rounds and repeats: short rounds are many, to even out; a run of 1,000 clients
# takes minutes, and FedAvg sends each client 45 MB both ways with the largest model.
ROUNDS = ((10, "31 kB", 40, 3), (100, "31 kB", 20, 2), (10, "45 MB", 5, 2), (1000, "31 kB", 5, 1))


@dataclass(frozen=True)
class Section:
    """One part of the bench.

    Attributes
    ----------
    row : type
        Dataclass of its rows.
    lines : callable
        Rows to the lines of their table.
    ratios : callable
        A row to what it is called and its ratios, each with its name.
    """

    row: type
    lines: Callable[[Sequence[Any]], list[str]]
    ratios: Callable[[Any], Mapping[str, Spread]]


SECTIONS: Mapping[str, Section] = {
    "encoding": Section(coding.Timing, coding.lines, coding.ratios),
    "training": Section(training.Training, training.lines, training.ratios),
    "rounds": Section(rounds.Rounds, rounds.lines, rounds.ratios),
    "startup": Section(startup.Startup, startup.lines, lambda row: {}),
}


def measure_bench(
    folder: Path,
    cifar10: str,
    sections: Sequence[str],
    app: Path,
    *,
    repeats: int = 7,
    device: str = "cpu",
    quick: bool = False,
    echo: Callable[[str], None] = print,
) -> None:
    """Measure sections and put them into ``bench.json``, in the place of those that are there.

    Parameters
    ----------
    folder : Path
        Of the results; created with its parents. Rows of `sim.scale` there are taken over.
    cifar10 : str
        Folder of CIFAR-10; empty: MNIST digits.
    sections : sequence of str
        Keys of `SECTIONS`.
    app : Path
        Folder of the app, for rounds and start-up.
    repeats : int
        Measurements of each, >= 1, interleaved; of what starts an engine three at most.
    device : str
        Torch device of the training; its rows on others are kept.
    quick : bool
        Whether each section has its smallest case alone.
    echo : callable
        Called with each line of progress.

    Raises
    ------
    RunError
        If a run fails; the sections before it are kept.
    """
    few = min(repeats, _FEW)

    def images() -> Images:
        return load("cifar10" if cifar10 else "mnist5k", "train", cifar10 or "data")

    def measured(section: str) -> Iterator[Any]:
        if section == "encoding":
            yield from coding.measure(images(), repeats, quick=quick)
        elif section == "training":
            yield from training.measure(images(), repeats, device, quick=quick)
        elif section == "rounds":
            for clients, model, number, most in ROUNDS[: 1 if quick else None]:
                number = 2 if quick else number
                yield rounds.measure(app, clients, model, number, min(few, most), echo)
        else:
            for engine in startup.ENGINES:
                yield startup.measure(app, engine, few)

    folder.mkdir(parents=True, exist_ok=True)
    for section in sections:
        echo(f"measuring {section}")
        rows = [asdict(row) for row in measured(section)]
        kept = [
            row for row in _read(folder).get(section, []) if row.get("device", device) != device
        ]
        found = {section: [*kept, *rows]}
        found["scale"] = [asdict(row) for row in read_rows(folder)]
        text = json.dumps({**_read(folder), **found}, indent=1) + "\n"
        (folder / FILE).write_text(text, encoding="utf-8")


def report(folder: Path) -> list[str]:
    """Return the tables of the sections in a folder, and draw the figure of their ratios."""
    found = _read(folder)
    lines: list[str] = []
    ratios: dict[str, Spread] = {}
    for name, section in SECTIONS.items():
        rows = [_as_row(section.row, values) for values in found.get(name, [])]
        if rows:
            lines += [*([""] if lines else []), *section.lines(rows)]
        for row in rows:
            ratios |= section.ratios(row)
    if ratios:
        _draw(ratios, folder / FIGURE)
    return lines


def _read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    path = folder / FILE
    found: dict[str, list[dict[str, Any]]] = (
        json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    )
    return found


def _as_row(kind: type, values: Mapping[str, Any]) -> Any:
    """Return a row as it was measured."""
    spreads = {field.name for field in fields(kind) if field.type is Spread}
    return kind(
        **{name: Spread(**value) if name in spreads else value for name, value in values.items()}
    )


def _draw(ratios: Mapping[str, Spread], path: Path) -> None:
    """Draw ratios, the median of each and its range, beside 1."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(8, 1.2 + 0.28 * len(ratios)), dpi=120, layout="constrained")
    axes = figure.add_subplot(
        title="Our time over the yardstick's (median, range)", xlabel="ratio; left of 1: faster"
    )
    for place, spread in enumerate(ratios.values()):
        colour = BLUE if spread.median <= 1.02 else ORANGE
        axes.plot([spread.min, spread.max], [place, place], color=colour, linewidth=2)
        axes.plot([spread.median], [place], "o", color=colour, markersize=6)
    axes.axvline(1, color="0.4", linestyle="--", linewidth=1)
    axes.set_xscale("log")
    least, most = axes.get_xlim()
    axes.set_xticks([tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if least < tick < most])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.minorticks_off()
    axes.set_yticks(range(len(ratios)), list(ratios))
    axes.invert_yaxis()
    bare(axes, "x")
    figure.savefig(path)
