"""What a run's results tell: headline numbers, accuracy, configuration."""

import json
from collections.abc import Sequence
from typing import Any

from codec.messages import REPLAY
from fl_app.report import figures
from fl_app.report.figures import Line
from fl_app.report.run import Run
from fl_app.report.view import Axis, Block, Cell, Switched, Table, Tile
from fl_app.run_folder import RoundRecord
from fl_app.words import duration, size

_MOST_POINTS = 300  # of a line
OLD = "written by an older version, or by a run that has not ended"


def number(value: float, text: str | None = None) -> Cell:
    """Return a cell of a number, in words of its own or as it is."""
    return Cell(f"{value:,}" if text is None else text, value)


def percent(share: float | None) -> Cell:
    """Return a cell of a share in percent."""
    return Cell("not evaluated") if share is None else Cell(f"{100 * share:.2f} %", share)


def tiles(run: Run) -> list[Tile]:
    """Return the headline numbers of a run; what it does not tell is left out."""
    told = {**_from_rounds(run), **run.result}
    found = []
    for key, label, words in (
        ("accuracy", "test accuracy", lambda v: f"{100 * v:.2f} %"),
        ("uplink_bytes", "uplink, all clients", size),
        ("bytes_per_sample", "bytes a sample, all in", lambda v: f"{v:.1f} B"),
        ("samples_sent", "samples sent", lambda v: f"{v:,}"),
        ("downlink_bytes", "downlink", size),
        ("variance_kept", "variance kept", lambda v: f"{100 * v:.1f} %"),
        ("clients", "clients", lambda v: f"{v:,}"),
        ("rounds", "rounds", lambda v: f"{v:,}"),
    ):
        value = told.get(key)
        if value is not None:
            found.append(Tile(key, label, words(value), value))
    if "failures" in run.result:
        failed = sum(run.result["failures"].values())
        found.append(Tile("failures", "replies failed", f"{failed:,}", failed))
    if "seconds" in run.result:
        seconds = run.result["seconds"]["total"]
        found.append(Tile("seconds", "duration", duration(seconds), seconds))
    return found


def _from_rounds(run: Run) -> dict[str, Any]:
    """Return what the rounds tell of a run that has written no result."""
    if not run.rounds:
        return {}
    last = run.rounds[-1]
    return {
        "accuracy": last.accuracy,
        "rounds": last.round,
        "samples_sent": last.samples_sent,
        "uplink_bytes": last.uplink_bytes,
        "downlink_bytes": last.downlink_bytes,
    }


def headline(runs: Sequence[Run], labels: Sequence[str]) -> Block:
    """Return the headline numbers: tiles of one run, a table of several."""
    found = [tiles(run) for run in runs]
    if len(runs) == 1:
        notes = [] if runs[0].result else ["The run has not ended: these are its rounds so far."]
        return Block(tiles=found[0], notes=notes)
    names = dict.fromkeys((tile.key, tile.label) for one in found for tile in one)
    by_key = [{tile.key: Cell(tile.text, tile.value) for tile in one} for one in found]
    rows = [[Cell(label), *(one.get(key, Cell("")) for one in by_key)] for key, label in names]
    return Block(tables=[Table("Of the whole run", ["", *labels], rows)])


def accuracy(runs: Sequence[Run], labels: Sequence[str]) -> Block:
    """Return test accuracy over rounds, uplink and both directions."""
    shown = [_thinned([r for r in run.rounds if r.accuracy is not None]) for run in runs]
    if not any(shown):
        return Block(notes=["No round was evaluated: there were no test images."])
    replays = any(run.entries.get("strategy", REPLAY) == REPLAY for run in runs)
    axes = [
        _axis("rounds", "rounds", shown, labels, lambda r: r.round),
        _axis("uplink", "uplink", shown, labels, lambda r: r.uplink_bytes, runs),
        _axis("both", "both directions", shown, labels,
              lambda r: r.uplink_bytes + r.downlink_bytes, runs),
    ]  # fmt: skip
    several = len(runs) > 1
    rows = [
        [
            number(r.round), *([Cell(label)] if several else []), percent(r.accuracy),
            number(r.uplink_bytes, size(r.uplink_bytes)),
            number(r.downlink_bytes, size(r.downlink_bytes)),
            number(r.samples_sent),
        ]
        for label, records in zip(labels, shown, strict=True)
        for r in records
    ]  # fmt: skip
    head = ["round", *(["run"] if several else []), "accuracy", "uplink", "downlink", "samples"]
    rows.sort(key=lambda row: row[0].value or 0)
    return Block(
        switched=[
            Switched(
                "Test accuracy",
                _reference_words(runs),
                axes if replays else [axes[1], axes[2], axes[0]],
                Table("Test accuracy by round; bytes are totals of all clients", head, rows),
                sorted({r.round for records in shown for r in records}),
            )
        ]
    )


def _axis(
    key: str,
    label: str,
    shown: Sequence[Sequence[RoundRecord]],
    labels: Sequence[str],
    x_of: Any,
    runs: Sequence[Run] = (),
) -> Axis:
    """Return accuracy over something; over bytes, with what raw pixels take beside it."""
    found = []
    for name, records in zip(labels, shown, strict=True):
        used = [r for r in records if not runs or x_of(r)]
        found.append(
            Line(
                name,
                [r.round for r in used],
                [float(x_of(r)) for r in used],
                [100 * (r.accuracy or 0) for r in used],
            )
        )
    raw = {run.rounds[-1].raw_pixel_bytes for run in runs if run.rounds} - {0}
    references = {f"raw pixels, {size(least)}": float(least) for least in sorted(raw)[:3]}
    xlabel = f"{label} so far, all clients" if runs else "round"
    title = f"Test accuracy over {label}"
    svg = figures.lines(
        found, xlabel, "test accuracy (%)", title, in_bytes=bool(runs), references=references
    )
    return Axis(key, label, svg)


def _reference_words(runs: Sequence[Run]) -> str:
    words = ["Dashed, over bytes: the same samples as raw pixels."]
    last = runs[0].rounds[-1] if len(runs) == 1 and runs[0].rounds else None
    if last and last.uplink_bytes and last.fp32_gradient_bytes:
        times = last.fp32_gradient_bytes / last.uplink_bytes
        words.append(
            f"fp32 gradients for the same steps would take {size(last.fp32_gradient_bytes)} up, "
            f"{times:,.0f} times as much."
        )
    return " ".join(words)


def _thinned(records: Sequence[RoundRecord]) -> list[RoundRecord]:
    """Return some of many rounds, evenly, the last among them."""
    if len(records) <= _MOST_POINTS:
        return list(records)
    stride = -(-len(records) // _MOST_POINTS)
    return [*records[:-1:stride], records[-1]]


def configuration(runs: Sequence[Run], labels: Sequence[str]) -> list[Block]:
    """Return what the runs were told, in which versions, and how to repeat them."""
    several = len(runs) > 1
    entries = [run.entries for run in runs]
    keys = list(dict.fromkeys(key for one in entries for key in one))
    blocks = []
    if several:
        differing = [k for k in keys if len({json.dumps(one.get(k)) for one in entries}) > 1]
        rows = [[Cell(k), *(Cell(_shown(one.get(k))) for one in entries)] for k in differing]
        blocks.append(Block(tables=[Table("Where the runs differ", ["key", *labels], rows)]))
    for run, label in zip(runs, labels, strict=True):
        changed = [[Cell(key), Cell(_shown(value))] for key, value in run.changed().items()]
        every = [[Cell(key), Cell(_shown(value))] for key, value in run.entries.items()]
        versions = [[Cell(k), Cell(str(v))] for k, v in run.result.get("versions", {}).items()]
        notes = [] if run.entries else [f"The run config is not known, {OLD}."]
        blocks.append(
            Block(
                label,
                command=run.command(),
                tables=[Table("Set for this run", ["key", "value"], changed)] if changed else [],
                folded=[
                    Table("All of the run config", ["key", "value"], every),
                    Table("Versions", ["package", "version"], versions),
                ],
                notes=notes,
            )
        )
    return blocks


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def titled(title: str, label: str) -> str:
    """Return a title with the run that it is of, if there are several."""
    return f"{title}: {label}" if label else title
