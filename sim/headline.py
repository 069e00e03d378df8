"""The README's table, from the raw results: ``python -m sim.headline`` writes it."""

from pathlib import Path

from sim.compare.codecs import sent_once
from sim.compare.points import (
    best_accuracy,
    final_percent,
    last_values,
    mean,
    needed_bytes,
    spread,
    uplink,
)
from sim.compare.presets import PRESETS
from sim.compare.results import Results, read_results
from sim.frontier.report import summary
from sim.frontier.run import read_frontier
from sim.generated import rewrite, with_part

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "sim" / "results"
_START = "<!-- headline table: python -m sim.headline -->\n"
_END = "<!-- end of headline table -->"
_FRONTIERS = ("cifar10", "fashion-mnist")
_FRONTIER = "<!-- frontier table: python -m sim.headline -->\n"
_FRONTIER_END = "<!-- end of frontier table -->"
# Ours and its strongest baselines of each kind; on Fashion-MNIST, where image codecs win.
ROWS = (
    ("cifar10-resnet18", "CIFAR-10, ResNet-18 (11 M)", "ours, replay, step 0.8"),
    ("cifar10-resnet18", "", "PowerSGD, rank 2"),
    ("cifar10-resnet18", "", "EDEN, 1 bit"),
    ("cifar10-resnet18", "", "FedAvg, top-1 % deltas"),
    ("cifar10-resnet18", "", "upload AVIF q20"),
    ("fashion-mnist", "Fashion-MNIST, small ResNet (0.08 M)", "ours, replay, step 0.2"),
    ("fashion-mnist", "", "top-1 % + EF"),
    ("fashion-mnist", "", "upload WebP q1"),
)


def headline() -> str:
    """Return the lines of the table."""
    lines = [
        "| data, model | method | accuracy % | uplink MB | relative uplink |",
        "|---|---|---|---|---|",
    ]
    for preset, title, method in ROWS:
        results = read_results(RESULTS / f"{preset}.jsonl")
        accuracy = spread(final_percent(results, method).values()).replace("+/-", "±")
        size = mean(last_values(results, method, "uplink_bytes")) / 1e6
        relative = _relative(preset, results, method)
        lines.append(f"| {title} | {method} | {accuracy} | {size:,.2f} | {relative} |")
    return "\n".join(lines) + "\n"


def _relative(preset: str, results: Results, method: str) -> str:
    """Return a method's uplink in multiples of ours, at equal accuracy."""
    codecs = {row.name: row for row in sent_once(PRESETS[preset], results) if row.is_codec}
    if method in codecs:
        row = codecs[method]
        return f"**{row.ratio:.2f}x**" if (row.ratio or 0) < 1 else f"{row.ratio:.2f}x"
    ours = next(name for key, title, name in ROWS if key == preset and title)
    reached = min(best_accuracy(results, method), best_accuracy(results, ours))
    needed = needed_bytes(results, method, reached, uplink)
    own = needed_bytes(results, ours, reached, uplink)
    if needed is None or own is None:
        return "not reached"
    ratio = needed / own
    return f"{ratio:,.0f}x" if ratio >= 10 else f"{ratio:.2f}x"


def frontiers() -> str:
    """Return the lines of the tables of trainings to the end."""
    found = [summary(name, read_frontier(RESULTS, name)) for name in _FRONTIERS]
    return "\n\n".join("\n".join(lines) for lines in found if lines) + "\n"


def with_headline(text: str) -> str:
    """Return the README's text with the tables as they are to be."""
    for start, end, lines in (
        (_FRONTIER, _FRONTIER_END, frontiers()),
        (_START, _END, headline()),
    ):
        text = with_part(text, start, end, lines)
    return text


if __name__ == "__main__":
    path = ROOT / "README.md"
    rewrite(path, with_headline)
