"""The table of docs/data.md, from the raw results: ``python -m sim.data_kinds.page`` writes it."""

from pathlib import Path

from sim.data_kinds.report import FULL, read_runs, table
from sim.generated import rewrite, with_part

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "data.md"
RAW = ROOT / "sim" / "results" / f"{FULL.name}.jsonl"
_START = f"<!-- rows of {FULL.name} -->\n"
_END = "<!-- end of rows -->"


def with_table(text: str) -> str:
    """Return the page's text with the table as it is to be."""
    lines = table(read_runs(RAW))
    return with_part(text, _START, _END, "".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    rewrite(PAGE, with_table)
