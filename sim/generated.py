"""Parts of a text that are generated, between a start and an end that stay."""

from collections.abc import Callable
from pathlib import Path


def with_part(text: str, start: str, end: str, part: str) -> str:
    """Return a text with what stands between `start`, once in it, and the next `end` replaced."""
    head, rest = text.split(start)
    return head + start + part + rest[rest.index(end) :]


def rewrite(path: Path, change: Callable[[str], str]) -> None:
    """Change the text of a file; one that is as it should be is not touched."""
    before = path.read_text(encoding="utf-8")
    after = change(before)
    if after != before:
        path.write_text(after, encoding="utf-8")
