"""What a run's books tell: headline, accuracy, bytes, failures, seconds, configuration."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from codec.messages import REPLAY
from fl_app.report import figures
from fl_app.report.arrived import Arrived
from fl_app.report.evidence import Evidence
from fl_app.report.figures import Line
from fl_app.report.run import Run
from fl_app.report.view import Axis, Block, Cell, Drawing, Switched, Table, Tile
from fl_app.run_folder import RoundRecord
from fl_app.words import duration, size

_MOST_POINTS = 300  # of a line
_MOST_BARS = 24
_OLD = "written by an older version, or by a run that has not ended"
_STAGES = {
    "round_trip": "round trips",
    "decode": "decoding",
    "train": "training",
    "total": "all of the run",
}


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


def traffic(evidence: Evidence, label: str) -> Block:
    """Return bytes by section, direction and client."""
    run, drawings, notes = evidence.run, [], []
    for key, way in (("sections", "uplink"), ("downlink_sections", "downlink")):
        sections = {k: v for k, v in run.result.get(key, {}).items() if v}
        if sections:
            caption = f"What the {way} is made of: content of the messages, as serialized."
            drawings.append(_byte_bars(f"Bytes by section, {way}", label, sections, caption))
        elif key not in run.result:
            notes.append(f"Bytes by section of the {way} are not in result.json, {_OLD}.")
    if run.rounds:
        drawings.append(_directions(run.rounds[-1], label))
    if run.result.get("nodes"):
        drawings.append(_by_client(evidence, label))
    else:
        notes.append(f"Bytes by client are not in result.json, {_OLD}.")
    return Block(label, drawings=drawings, notes=notes)


def _byte_bars(title: str, label: str, counts: Mapping[str, float], caption: str) -> Drawing:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    total = sum(counts.values()) or 1
    rows = [
        [Cell(name), number(count, f"{count:,.0f}"), percent(count / total)]
        for name, count in ordered
    ]
    names, values = [name for name, _ in ordered], [count for _, count in ordered]
    svg = figures.bars(names, {"": values}, "bytes", _titled(title, label), in_bytes=True)
    return Drawing(title, caption, svg, Table(title, ["", "bytes", "share"], rows))


def _directions(last: RoundRecord, label: str) -> Drawing:
    content = [last.uplink_bytes, last.downlink_bytes]
    around = [last.uplink_envelope_bytes, last.downlink_envelope_bytes]
    rows = [
        [Cell(name), number(c), number(e)]
        for name, c, e in zip(("uplink", "downlink"), content, around, strict=True)
    ]
    title = "Bytes by direction"
    svg = figures.bars(
        ["uplink", "downlink"], {"content": content, "envelope": around}, "bytes",
        _titled(title, label), in_bytes=True, stacked=True,
    )  # fmt: skip
    caption = "Content of the messages, and what a SuperLink counts around it."
    return Drawing(title, caption, svg, Table(title, ["", "content", "envelope"], rows))


def client_names(evidence: Evidence, nodes: Iterable[str]) -> dict[str, str]:
    """Return what nodes are called: by the number of their client where the bank tells it."""
    arrived = evidence.arrived
    known = {}
    if isinstance(arrived, Arrived) and evidence.run.clients is not None:
        known = {str(reply.node): f"client {reply.client}" for reply in arrived.replies}
    return {node: known.get(node, f"node {node}") for node in nodes}


def _by_client(evidence: Evidence, label: str) -> Drawing:
    nodes: Mapping[str, Any] = evidence.run.result["nodes"]
    names = client_names(evidence, nodes)
    ordered = sorted(nodes, key=lambda node: (len(names[node]), names[node]))
    rows = [
        [
            Cell(names[node]),
            number(nodes[node]["uplink_bytes"]),
            number(nodes[node]["downlink_bytes"]),
        ]
        for node in ordered
    ]
    up = [float(nodes[node]["uplink_bytes"]) for node in ordered]
    title = "Bytes by client"
    if len(ordered) <= _MOST_BARS:
        shown = [names[node] if len(names[node]) < 12 else f"…{node[-5:]}" for node in ordered]
        svg = figures.bars(
            shown, {"uplink": up}, "uplink, content (bytes)", _titled(title, label), in_bytes=True
        )
    else:
        svg = figures.histogram({"clients": up}, "uplink, content (bytes)", _titled(title, label))
    caption = "Content that each client has sent; the table has what it received, too."
    head = ["", "uplink bytes", "downlink bytes"]
    return Drawing(title, caption, svg, Table(title, head, rows[:_MOST_POINTS]))


def failures(evidence: Evidence, label: str) -> Block:
    """Return replies that could not be used, by node and cause, and samples that were skipped."""
    result, tables, notes = evidence.run.result, [], []
    if "failures" not in result:
        return Block(label, notes=[f"Failures are not known: no result.json, {_OLD}."])
    if result["failures"]:
        rows = [[Cell(cause), number(n)] for cause, n in _largest(result["failures"])]
        tables.append(Table("Replies that failed, by cause", ["cause", "replies"], rows))
        nodes = {k: v["failures"] for k, v in result.get("nodes", {}).items() if v["failures"]}
        if nodes:
            names, causes = (
                client_names(evidence, nodes),
                [c for c, _ in _largest(result["failures"])],
            )
            worst = sorted(nodes, key=lambda node: -sum(nodes[node].values()))[:_MOST_POINTS]
            rows = [[Cell(names[n]), *(number(nodes[n].get(c, 0)) for c in causes)] for n in worst]
            tables.append(Table("Replies that failed, by node and cause", ["node", *causes], rows))
        else:
            notes.append(f"Which nodes they were of is not in result.json, {_OLD}.")
    else:
        notes.append("Every reply could be used.")
    if result.get("skipped"):
        rows = [[Cell(reason), number(n)] for reason, n in _largest(result["skipped"])]
        tables.append(Table("Samples that devices skipped", ["reason", "samples"], rows))
    for key, words in (
        ("late", "replies came in a later round than they were asked for, and were used"),
        ("duplicates", "samples were here already, and were dropped"),
        ("clipped", "values lay outside the declared range, and were clipped"),
    ):
        if result.get(key):
            notes.append(f"{result[key]:,} {words}.")
    return Block(label, tables=tables, notes=notes)


def _largest(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def seconds(run: Run, label: str) -> Block:
    """Return seconds by stage, of the devices together and of the server."""
    told: Mapping[str, float] = run.result.get("seconds", {})
    device = {k.removeprefix("client_"): v for k, v in told.items() if k.startswith("client_")}
    server = {_STAGES.get(k, k): v for k, v in told.items() if not k.startswith("client_")}
    drawings = []
    for title, stages, caption in (
        ("Device seconds by stage", device, "Summed over all devices and rounds."),
        ("Server seconds by stage", server,
         "Round trips last from the requests' leaving to the last reply."),
    ):  # fmt: skip
        if stages:
            ordered = sorted(stages.items(), key=lambda item: -item[1])
            rows = [[Cell(name), number(value, f"{value:,.2f}")] for name, value in ordered]
            names, values = [name for name, _ in ordered], [value for _, value in ordered]
            svg = figures.bars(names, {"": values}, "seconds", _titled(title, label))
            drawings.append(Drawing(title, caption, svg, Table(title, ["", "seconds"], rows)))
    notes = [] if device else ["Devices have told of no seconds."]
    return Block(label, drawings=drawings, notes=notes)


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
        notes = [] if run.entries else [f"The run config is not known, {_OLD}."]
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


def _titled(title: str, label: str) -> str:
    return f"{title}: {label}" if label else title
