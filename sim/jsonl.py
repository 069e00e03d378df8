"""Results that are kept as they come: one frozen dataclass a line of a JSONL file."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

PointT = TypeVar("PointT")


def read_points(path: Path, kind: type[PointT]) -> list[PointT]:
    """Return the points of a kind in a file; none if there is no such file."""
    if not path.exists():
        return []
    return [kind(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def append_points(path: Path, points: Iterable[Any]) -> None:
    """Add points, instances of a dataclass, to a file."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(point)) + "\n" for point in points)
