"""Tables of results in the terminal."""

import io

from rich.console import Console
from rich.table import Table


def numbers(*headings: str) -> Table:
    """Return an empty table, its first column for names and the others for numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left")
    return table


def lines(table: Table) -> list[str]:
    """Return the lines of a table, as plain text of the width that it needs."""
    file = io.StringIO()
    Console(file=file, width=1000, color_system=None, markup=False, emoji=False).print(table)
    return [line.rstrip() for line in file.getvalue().splitlines()]
