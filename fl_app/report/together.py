"""One figure of several runs in place of one of each, so that they have one scale."""

from collections.abc import Sequence
from dataclasses import replace

from fl_app.report import figures
from fl_app.report.figures import Line
from fl_app.report.view import Block, Cell, Drawing, Series, Table


def together(blocks: Sequence[Block], names: Sequence[str]) -> list[Block]:
    """Return blocks of runs with the figures that all of them have drawn as one, before the others.

    Parameters
    ----------
    blocks : sequence of Block
        One for each run.
    names : sequence of str
        Of the runs.
    """
    if len(blocks) < 2:
        return list(blocks)
    by_title = [{d.title: d for d in block.drawings if d.series is not None} for block in blocks]
    titles = [title for title in by_title[0] if all(title in some for some in by_title)]
    drawn = [_joined([some[title] for some in by_title], names) for title in titles]
    left = [
        replace(block, drawings=[d for d in block.drawings if d.title not in titles])
        for block in blocks
    ]
    return [Block(drawings=drawn), *(block for block in left if _has_content(block))]


def _has_content(block: Block) -> bool:
    return bool(block.drawings or block.tables or block.notes)


def _joined(drawings: Sequence[Drawing], names: Sequence[str]) -> Drawing:
    first = drawings[0]
    series = [drawing.series for drawing in drawings if drawing.series is not None]
    labels = list(dict.fromkeys(label for some in series for label in some.cells))
    if series[0].kind == "rounds":
        labels.sort(key=int)
    table = Table(
        first.table.caption,
        [first.table.head[0], *names],
        [[Cell(label), *(some.cells.get(label, Cell("")) for some in series)] for label in labels],
    )
    return replace(first, svg=_drawn(first.title, series, labels, names), table=table, series=None)


def _drawn(
    title: str, series: Sequence[Series], labels: Sequence[str], names: Sequence[str]
) -> str:
    values = [
        {label: (cell.value or 0.0) * some.scale for label, cell in some.cells.items()}
        for some in series
    ]
    if series[0].kind == "rounds":
        lines = []
        for name, known in zip(names, values, strict=True):
            rounds = [int(label) for label in labels if label in known]
            found = [known[label] for label in labels if label in known]
            lines.append(Line(name, rounds, [float(r) for r in rounds], found))
        return figures.lines(lines, "round", series[0].label, title)
    bars = {
        name: [known.get(label, 0.0) for label in labels]
        for name, known in zip(names, values, strict=True)
    }
    return figures.bars(labels, bars, series[0].label, title, in_bytes=series[0].kind == "bytes")
