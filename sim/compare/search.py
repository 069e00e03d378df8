"""The search over a method's hyperparameters, before its seeds are run."""

from collections.abc import Callable, Mapping

from sim.run_config import ConfigValue

_BEYOND = 3  # values tried beyond a grid at most

Trial = Callable[[dict[str, ConfigValue], bool], float]


def search(grid: Mapping[str, tuple[ConfigValue, ...]], trial: Trial) -> dict[str, ConfigValue]:
    """Return the best value of each key, tried one key at a time.

    Short trials choose two finalists, longer ones the winner: what is best at first is often too
    small a learning rate for the end.

    Parameters
    ----------
    grid : mapping of str to tuple
        Values of each key; where the best of a geometric grid lies at its end, up to three
        values beyond it are tried.
    trial : callable
        Accuracy of some values; its second argument says whether it is a final.
    """
    best: dict[str, ConfigValue] = {}
    for key, given in grid.items():
        found: dict[ConfigValue, float] = {}
        values = list(given)
        while values:
            value = values.pop(0)
            found[value] = trial({**best, key: value}, False)
            if not values and len(found) < len(given) + _BEYOND:
                values = beyond(found)
        finalists = sorted(found, key=found.__getitem__)[-2:]
        finals = {value: trial({**best, key: value}, True) for value in finalists}
        best[key] = max(finals, key=finals.__getitem__)
    return best


def beyond(found: Mapping[ConfigValue, float]) -> list[ConfigValue]:
    """Return the value to try next if the best one lies at an end of a geometric grid.

    Parameters
    ----------
    found : mapping of value to accuracy
    """
    tried = sorted(value for value in found if isinstance(value, float))
    if len(tried) < 2:
        return []
    best = max(tried, key=found.__getitem__)
    inner = {tried[0]: tried[1], tried[-1]: tried[-2]}
    return [float(f"{best * best / inner[best]:.6g}")] if best in inner else []
