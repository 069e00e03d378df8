"""The table of docs/experiments.md, from the results: ``python -m sim.faults.page`` writes it."""

from pathlib import Path

from sim.faults.report import RESULTS, read_rows, table, total
from sim.generated import rewrite, with_part

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "experiments.md"
RAW = ROOT / "sim" / "results" / RESULTS
_START = "<!-- faults: python -m sim.faults.page -->\n"
_END = "<!-- end of faults -->"


def with_table(text: str) -> str:
    """Return the page's text with the table as it is to be."""
    rows = read_rows(RAW)
    lines = [*table(rows), "", f"{total(rows)}."]
    return with_part(text, _START, _END, "".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    rewrite(PAGE, with_table)
