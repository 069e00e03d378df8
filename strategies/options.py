"""Options that both strategies take, and how they are checked."""

import math

# Scores that a client computes with the model.
MODEL_IMPORTANCES = ("loss", "grad-norm", "margin", "entropy")
IMPORTANCES = ("all", "random", *MODEL_IMPORTANCES)
SELECTIONS = ("probability", "threshold", "budget")


def check_range(
    name: str, value: float, low: float, high: float = math.inf, *, open_low: bool = False
) -> None:
    """Raise ``ValueError`` with name, value and legal range unless ``low <= value <= high``."""
    if not (low < value if open_low else low <= value) or not value <= high:
        bounds = f"{'(' if open_low else '['}{low}, {high}]"
        raise ValueError(f"{name} must be in {bounds}, not {value}")


def is_due(server_round: int, every: int, num_rounds: int) -> bool:
    """Whether a round is one of every so many, or the last."""
    return server_round % every == 0 or server_round == num_rounds


def check_choice(name: str, value: str, legal: tuple[str, ...]) -> None:
    """Raise ``ValueError`` with name, value and legal values unless the value is one of them."""
    if value not in legal:
        raise ValueError(f"{name} must be one of {', '.join(legal)}, not {value!r}")


def check_filter(
    importance: str, selection: str, keep_rate: float, uniform_share: float, uplink_budget: int
) -> None:
    """Check the options of the clients' importance filter; ``ValueError`` as above."""
    check_choice("importance", importance, IMPORTANCES)
    check_choice("selection", selection, SELECTIONS)
    check_range("keep_rate", keep_rate, 0.0, 1.0, open_low=True)
    check_range("uniform_share", uniform_share, 0.0, 1.0)
    check_range("uplink_budget", uplink_budget, 0)
