"""What a page is made of, before it is HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes
    ----------
    text : str
    value : float or None
        The number that the text tells, for machines.
    """

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """A table; the first cell of each row is its head.

    Attributes
    ----------
    caption : str
    head : sequence of str
    rows : sequence of sequence of Cell
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Series:
    """Numbers by what they are of, which can be drawn beside those of other runs.

    Attributes
    ----------
    cells : dict of str to Cell
        In their order.
    label : str
        Of the axis.
    kind : str
        "bytes" or "numbers", drawn as bars, or "rounds", drawn as a line over rounds.
    scale : float
        By which values are multiplied before they are drawn.
    """

    cells: Mapping[str, Cell]
    label: str
    kind: str
    scale: float = 1.0


@dataclass(frozen=True)
class Drawing:
    """A figure.

    Attributes
    ----------
    title, caption : str
    svg : str
        Trusted markup, of `figures` alone.
    table : Table
        The same in numbers.
    series : Series or None
        What it shows, if that is all; several runs then have one figure.
    """

    title: str
    caption: str
    svg: str
    table: Table
    series: Series | None = None


@dataclass(frozen=True)
class Axis:
    """One of several drawings of which one is shown at a time; `key` is its name in the page."""

    key: str
    label: str
    svg: str


@dataclass(frozen=True)
class Switched:
    """Drawings of the same points over several axes, with one table.

    Attributes
    ----------
    title, caption : str
    axes : sequence of Axis
        The first is shown first.
    table : Table
    rounds : sequence of int
        That can be picked; a point of round n has the class ``round-n``.
    """

    title: str
    caption: str
    axes: Sequence[Axis]
    table: Table
    rounds: Sequence[int]


@dataclass(frozen=True)
class Tile:
    """A headline number; `key` is the name of `value` in ``result.json``."""

    key: str
    label: str
    text: str
    value: float | None


@dataclass(frozen=True)
class Picture:
    """A picture with words below it.

    Attributes
    ----------
    src : str
        Data URI; empty where there is no picture.
    alt : str
    lines : sequence of str
    is_own : bool
        Whether it is what the run itself has sent.
    """

    src: str
    alt: str
    lines: Sequence[str]
    is_own: bool = False


@dataclass(frozen=True)
class Card:
    """Pictures of one sample."""

    title: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Strip:
    """Pictures of a kind."""

    title: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Block:
    """What a section has of one run, or of all.

    Attributes
    ----------
    title : str
        Of the run; empty where there is one run, or for what all have in common.
    notes : sequence of str
        What is missing, and why.
    """

    title: str = ""
    tiles: Sequence[Tile] = ()
    switched: Sequence[Switched] = ()
    drawings: Sequence[Drawing] = ()
    cards: Sequence[Card] = ()
    strips: Sequence[Strip] = ()
    tables: Sequence[Table] = ()
    folded: Sequence[Table] = ()
    command: str = ""
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Section:
    """A section of the page; `key` is its anchor, `short` its name among the links to sections."""

    key: str
    short: str
    title: str
    lead: str
    blocks: Sequence[Block]
