"""Reads a report's page back, by the standard library alone."""

from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "img", "input", "link", "br", "hr"}
LOADING = {"src", "href", "xlink:href", "action", "data", "poster", "srcset"}


class Page(HTMLParser):
    """A page, read.

    Attributes
    ----------
    text : str
        All of the file.
    tags : list of (str, dict)
        Elements with their attributes, in order.
    headline : dict of str to float
        Numbers by their keys in ``result.json``.
    tables : dict of str to list of list of (str, float or None)
        Rows of the tables by their captions: the text and the number of each cell. Of tables with
        the same caption, one after the other.
    words : str
        What is to be read.
    unclosed : list of str
        Elements that were not closed where they should have been.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.headline: dict[str, float] = {}
        self.tables: dict[str, list[list[tuple[str, float | None]]]] = {}
        self.unclosed: list[str] = []
        self._open: list[str] = []
        self._said: list[str] = []
        self._rows: list[list[tuple[str, float | None]]] = []
        self._caption = ""
        self.feed(self.text)
        self.close()
        self.words = " ".join(self._said)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append((tag, found))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self._rows, self._caption = [], ""
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th") and self._rows:
            self._rows[-1].append(("", None))
        if tag == "data":
            value = float(found["value"])
            if "data-key" in found:
                self.headline[found["data-key"]] = value
            elif self._rows and self._rows[-1]:
                self._rows[-1][-1] = ("", value)

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.unclosed.append(tag)
        if tag == "table":
            self.tables.setdefault(self._caption, []).extend(self._rows[1:])
            self._rows = []

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("style", "script"):
            return
        self._said.append(data)
        if "caption" in self._open:
            self._caption += data
        elif {"td", "th"} & set(self._open):
            text, value = self._rows[-1][-1]
            self._rows[-1][-1] = (text + data, value)

    def all(self, tag: str) -> list[dict[str, str]]:
        """Attributes of all elements of a kind."""
        return [attributes for name, attributes in self.tags if name == tag]

    def loads(self) -> list[str]:
        """Addresses that are neither in the page nor data."""
        return [
            value
            for _, attributes in self.tags
            for name, value in attributes.items()
            if name in LOADING and not value.startswith(("#", "data:"))
        ]

    def column(self, caption: str, number: int) -> dict[str, float]:
        """Numbers of a column of a table, by the text of the first."""
        return {row[0][0]: row[number][1] or 0.0 for row in self.tables[caption]}
