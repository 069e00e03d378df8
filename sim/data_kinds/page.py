"""The table of docs/data.md, from the raw results: ``python -m sim.data_kinds.page`` writes it."""

from pathlib import Path

from sim.data_kinds.report import FULL, read_runs, table

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "data.md"
RAW = ROOT / "sim" / "results" / f"{FULL.name}.jsonl"
_START = f"<!-- rows of {FULL.name} -->\n"
_END = "<!-- end of rows -->"


def with_table(text: str) -> str:
    """Return the page's text with the table as it is to be."""
    head, rest = text.split(_START)
    return (
        head
        + _START
        + "".join(f"{line}\n" for line in table(read_runs(RAW)))
        + rest[rest.index(_END) :]
    )


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
