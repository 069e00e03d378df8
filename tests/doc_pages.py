"""The pages of the documentation, and their fenced blocks."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes
    ----------
    page : Path
    line : int
        Of the opening fence, from 1.
    language, text : str
    comment : str
        Of the HTML comment right above the block, without its marks; empty if there is none.
    """

    page: Path
    line: int
    language: str
    text: str
    comment: str

    @property
    def name(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def runs(self) -> bool:
        return not re.fullmatch(r"not run: \S.*", self.comment)

    @property
    def lines(self) -> list[str]:
        """What a user would give to a shell, continued lines as one: not prompts, nor output."""
        text = self.text.replace("\\\n", " ")
        if self.language == "console":
            return [line[2:] for line in text.splitlines() if line.startswith("$ ")]
        return text.splitlines()


def blocks_of(page: Path) -> Iterator[Block]:
    lines = iter(enumerate(page.read_text(encoding="utf-8").splitlines(), start=1))
    above = ""
    for number, line in lines:
        if not line.startswith("```"):
            above = line
            continue
        text = []
        for _, inner in lines:
            if inner.startswith("```"):
                break
            text.append(inner)
        found = re.fullmatch(r"<!-- (.*) -->", above)
        comment = found[1] if found else ""
        yield Block(page, number, line.removeprefix("```").strip(), "\n".join(text) + "\n", comment)


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def outside_fences(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)


def anchors_of(page: Path) -> set[str]:
    """Return what GitHub makes of the headings of a page."""
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", outside_fences(page), re.M)}


def slug(heading: str) -> str:
    text = re.sub(r"\[([^]]*)]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
