"""What figures have in common: colours for everybody, and axes without a box."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Of Okabe and Ito: told apart by the colour-blind, too.
BLUE, SKY, ORANGE, GREEN = "#0072b2", "#56b4e9", "#d55e00", "#009e73"
PURPLE, YELLOW, INK = "#cc79a7", "#e69f00", "#333333"


def bare(axes: "Axes", grid: Literal["both", "x", "y"] = "both") -> None:
    """Draw a faint grid, and leave out the lines at the top and the right."""
    axes.grid(axis=grid, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
