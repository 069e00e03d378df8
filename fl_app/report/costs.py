"""What a run has cost: bytes by section, direction and client; failures; seconds by stage."""

from collections.abc import Iterable, Mapping
from typing import Any

from fl_app.report import figures
from fl_app.report.arrived import Arrived
from fl_app.report.evidence import Evidence
from fl_app.report.numbers import OLD, number, percent, titled
from fl_app.report.run import Run
from fl_app.report.view import Block, Cell, Drawing, Series, Table
from fl_app.run_folder import RoundRecord
from fl_app.words import size

_MOST_BARS, _MOST_ROWS = 24, 300
_STAGES = {
    "round_trip": "round trips",
    "decode": "decoding",
    "train": "training",
    "total": "all of the run",
}


def traffic(evidence: Evidence, label: str) -> Block:
    """Return bytes by section, direction and client."""
    run, drawings, notes = evidence.run, [], []
    for key, way in (("sections", "uplink"), ("downlink_sections", "downlink")):
        sections = {k: v for k, v in run.result.get(key, {}).items() if v}
        if sections:
            caption = f"What the {way} is made of: content of the messages, as serialized."
            drawings.append(_byte_bars(f"Bytes by section, {way}", label, sections, caption))
        elif key not in run.result:
            notes.append(f"Bytes by section of the {way} are not in result.json, {OLD}.")
    if run.rounds:
        drawings.append(_directions(run.rounds[-1], label))
    if run.result.get("nodes"):
        drawings.append(_by_client(evidence, label))
    else:
        notes.append(f"Bytes by client are not in result.json, {OLD}.")
    return Block(label, drawings=drawings, notes=notes)


def _byte_bars(title: str, label: str, counts: Mapping[str, float], caption: str) -> Drawing:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    total = sum(counts.values()) or 1
    rows = [
        [Cell(name), number(count, f"{count:,.0f}"), percent(count / total)]
        for name, count in ordered
    ]
    names, values = [name for name, _ in ordered], [count for _, count in ordered]
    svg = figures.bars(names, {"": values}, "bytes", titled(title, label), in_bytes=True)
    cells = {name: number(count, size(count)) for name, count in ordered}
    series = Series(cells, "bytes", "bytes")
    return Drawing(title, caption, svg, Table(title, ["", "bytes", "share"], rows), series)


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
        titled(title, label), in_bytes=True, stacked=True,
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
            shown, {"uplink": up}, "uplink, content (bytes)", titled(title, label), in_bytes=True
        )
    else:
        svg = figures.histogram({"clients": up}, "uplink, content (bytes)", titled(title, label))
    caption = "Content that each client has sent; the table has what it received, too."
    head = ["", "uplink bytes", "downlink bytes"]
    table, series = Table(title, head, rows[:_MOST_ROWS]), None
    if len(ordered) <= _MOST_BARS:
        cells = {
            name: number(value, f"{value:,.0f}") for name, value in zip(shown, up, strict=True)
        }
        series = Series(cells, "uplink, content (bytes)", "bytes")
    return Drawing(title, caption, svg, table, series)


def failures(evidence: Evidence, label: str) -> Block:
    """Return replies that could not be used, by node and cause, and samples that were skipped."""
    result, tables, notes = evidence.run.result, [], []
    if "failures" not in result:
        return Block(label, notes=[f"Failures are not known: no result.json, {OLD}."])
    if result["failures"]:
        rows = [[Cell(cause), number(n)] for cause, n in _largest(result["failures"])]
        tables.append(Table("Replies that failed, by cause", ["cause", "replies"], rows))
        nodes = {k: v["failures"] for k, v in result.get("nodes", {}).items() if v["failures"]}
        if nodes:
            names, causes = (
                client_names(evidence, nodes),
                [c for c, _ in _largest(result["failures"])],
            )
            worst = sorted(nodes, key=lambda node: -sum(nodes[node].values()))[:_MOST_ROWS]
            rows = [[Cell(names[n]), *(number(nodes[n].get(c, 0)) for c in causes)] for n in worst]
            tables.append(Table("Replies that failed, by node and cause", ["node", *causes], rows))
        else:
            notes.append(f"Which nodes they were of is not in result.json, {OLD}.")
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
            svg = figures.bars(names, {"": values}, "seconds", titled(title, label))
            series = Series({row[0].text: row[1] for row in rows}, "seconds", "numbers")
            table = Table(title, ["", "seconds"], rows)
            drawings.append(Drawing(title, caption, svg, table, series))
    notes = [] if device else ["Devices have told of no seconds."]
    return Block(label, drawings=drawings, notes=notes)
