"""Raw results of a comparison: one JSONL file holds everything that was run."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.run_config import ConfigValue

Row = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """Raw results of a preset.

    Attributes
    ----------
    runs : list of dict
        One for each method and seed: configuration, seconds, bytes by section, versions.
    points : list of dict
        ``method``, ``seed``, ``step``, ``accuracy``, ``uplink_bytes``, ``downlink_bytes``; bytes
        are cumulative, of all clients.
    trials : list of dict
        Of the search over hyperparameters: ``method``, ``config``, ``steps``, ``accuracy``.
    sizes : list of dict
        Of one message of each method that compresses: ``method`` and what
        `sim.compare.sizes.message_size` returns.
    """

    runs: list[Row]
    points: list[Row]
    trials: list[Row]
    sizes: list[Row]

    def run(self, method: str, seed: int) -> Row | None:
        """Return the run of a method and seed, or None."""
        return next((run for run in self.runs if _is_of(run, method, seed)), None)

    def trial(self, method: str, config: Mapping[str, ConfigValue], steps: int) -> Row | None:
        """Return the trial of a method with some values and steps, or None."""
        wanted = {"method": method, "config": config, "steps": steps}
        return next((row for row in self.trials if wanted.items() <= row.items()), None)

    def has_size(self, method: str) -> bool:
        """Whether the size of a method's message was measured."""
        return any(row["method"] == method for row in self.sizes)


def _is_of(row: Row, method: str, seed: int) -> bool:
    return bool(row["method"] == method and row["seed"] == seed)


def read_results(path: Path) -> Results:
    """Read a JSONL file.

    If a method was run twice with the same seed, the later run counts. A line that was cut off
    by an interruption is skipped.
    """
    results = Results([], [], [], [])
    if not path.exists():
        return results
    kinds = {
        "run": results.runs,
        "point": results.points,
        "trial": results.trials,
        "size": results.sizes,
    }
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        kind = row.pop("kind")
        if kind == "run":
            for rows in (results.runs, results.points):
                rows[:] = [old for old in rows if not _is_of(old, row["method"], row["seed"])]
        kinds[kind].append(row)
    return results


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Append rows in one piece, so that processes may append to one file."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
