"""The search over a method's hyperparameters, before its seeds are run."""

from collections.abc import Callable, Mapping
from functools import partial

from sim.run_config import ConfigValue

_BEYOND = 3  # values tried beyond a grid at most

Trial = Callable[[dict[str, ConfigValue], bool], float]


def search(grid: Mapping[str, tuple[ConfigValue, ...]], trial: Trial) -> dict[str, ConfigValue]:
    """Return the best value of each key, tried one key at a time.

    Short trials choose a value. A learning rate that is best in a short trial is often too small
    for a longer one, so longer trials then try the larger values in turn, until one is no better.

    Parameters
    ----------
    grid : mapping of str to tuple
        Values of each key. If the best value is at an end of a geometric grid, up to three
        values beyond it are tried.
    trial : callable
        Returns the accuracy of some values; its second argument says whether the trial is a
        longer one.
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
        best[key] = _larger(found, partial(_final, trial, best, key))
    return best


def _final(trial: Trial, others: Mapping[str, ConfigValue], key: str, value: ConfigValue) -> float:
    return trial({**others, key: value}, True)


def _larger(
    found: Mapping[ConfigValue, float], final: Callable[[ConfigValue], float]
) -> ConfigValue:
    """Return the best value of the short trials, or a larger one that is better in longer ones."""
    best = max(found, key=found.__getitem__)
    if not isinstance(best, float):
        return best
    larger = sorted(value for value in found if isinstance(value, float) and value > best)
    accuracy = final(best) if larger else 0.0
    for value in larger:
        gained = final(value)
        if gained <= accuracy:
            break
        best, accuracy = value, gained
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
