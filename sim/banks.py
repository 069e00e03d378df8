"""What the commands of `bank` print."""

from collections.abc import Callable, Mapping
from pathlib import Path

from fl_app.words import size
from sim import tables
from strategies.errors import BankError
from strategies.sample_bank import SampleBank
from strategies.sample_bank.export import FORMATS, export
from strategies.sample_bank.integrity import Inventory, compact, inventory

_SHOWN = 20  # lines of a list


def show_bank(path: Path, echo: Callable[[str], None]) -> None:
    """Print what a bank holds; its samples are not decoded."""
    found = inventory(path, thorough=False)
    for line in lines_of(found):
        echo(line)
    for title, counts in (("samples by kind", found.kinds), ("samples by class", found.classes)):
        for line in _table(title, counts):
            echo(line)
    _tell_damage(found, echo)


def check_bank(path: Path, echo: Callable[[str], None]) -> None:
    """Decode all of a bank and print what it holds.

    Raises
    ------
    BankError
        If anything is not what was written; after it was named.
    """
    found = inventory(path, thorough=True)
    for line in lines_of(found):
        echo(line)
    _tell_damage(found, echo)
    if found.damaged:
        raise BankError(
            f"bank {found.path}: {len(found.damaged)} damaged; {found.samples:,} samples are whole"
        )
    echo(f"whole: every checksum agrees and all {found.payloads:,} payloads decode")


def export_bank(path: Path, folder: Path, kind: str, echo: Callable[[str], None]) -> None:
    """Write a bank's samples for others, and print where."""
    if kind not in FORMATS:
        raise BankError(f"--format = {kind!r} must be one of {', '.join(FORMATS)}")
    dataset = SampleBank.open(path)
    place = export(dataset, folder, kind)
    echo(f"{len(dataset):,} samples: {place}")


def compact_bank(path: Path, echo: Callable[[str], None]) -> None:
    """Make a bank's file as small as it can be."""
    removed, before, after = compact(path)
    echo(f"{removed:,} payloads removed; {size(before)} before, {size(after)} now")


def lines_of(found: Inventory) -> list[str]:
    """Return what a bank holds in a few lines."""
    waiting = f", {found.waiting:,} of them waiting" if found.waiting else ""
    each = found.payload_bytes / max(1, found.samples + found.duplicates)
    return [
        f"bank {found.id.hex()}: {found.path}",
        f"samples: {found.samples:,}, and {found.duplicates:,} duplicates dropped",
        f"replies: {found.replies:,}{waiting}, of {found.nodes:,} nodes ({found.clients:,} "
        f"clients), by {', '.join(found.strategies) or 'no strategy named'}",
        f"payloads: {found.payloads:,}, {size(found.payload_bytes)}, {each:.1f} B a sample; "
        f"file: {size(found.file_bytes)}",
        f"paid for: {size(found.uplink_bytes)} content, {size(found.envelope_bytes)} envelope",
    ]


def _table(title: str, counts: Mapping[str, int]) -> list[str]:
    if not counts:
        return []
    table = tables.numbers(title, "")
    for name, count in list(counts.items())[:_SHOWN]:
        table.add_row(name, f"{count:,}")
    if len(counts) > _SHOWN:
        table.add_row(f"{len(counts) - _SHOWN} more", f"{sum(list(counts.values())[_SHOWN:]):,}")
    return tables.lines(table)


def _tell_damage(found: Inventory, echo: Callable[[str], None]) -> None:
    for what in found.damaged[:_SHOWN]:
        echo(f"damaged: {what}")
    if len(found.damaged) > _SHOWN:
        echo(f"damaged: {len(found.damaged) - _SHOWN} more")
