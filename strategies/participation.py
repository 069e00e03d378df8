"""Which nodes take part in a round."""

import time
from logging import INFO

import numpy as np
from flwr.common import log
from flwr.serverapp import Grid

_POLL_SECONDS = 1.0
_LOG_SECONDS = 10.0


def wait_for_nodes(grid: Grid, minimum: int, finished: set[int]) -> set[int]:
    """Wait until enough nodes are connected.

    Parameters
    ----------
    grid : Grid
        Flower's connection to the nodes.
    minimum : int
        Nodes needed.
    finished : set[int]
        Nodes with nothing left to send; they count as connected, for nobody needs them.

    Returns
    -------
    set[int]
        Connected and finished nodes.
    """
    logged_at = -_LOG_SECONDS
    started = time.monotonic()
    while len(nodes := set(grid.get_node_ids()) | finished) < minimum:
        waited = time.monotonic() - started
        if waited - logged_at >= _LOG_SECONDS:
            logged_at = waited
            log(
                INFO,
                "waiting for nodes: %d of %d connected after %.0f s",
                len(nodes),
                minimum,
                waited,
            )
        time.sleep(_POLL_SECONDS)
    return nodes


def choose_nodes(
    connected: set[int], finished: set[int], fraction: float, stream: np.random.Generator
) -> list[int]:
    """Choose a round's nodes.

    Parameters
    ----------
    connected, finished : set[int]
        All nodes, and those of them to leave alone.
    fraction : float
        Share of ``connected`` to choose, in (0, 1]; at least one node, if any is left.
    stream : np.random.Generator
        Source of the choice, which depends on nothing else: node ids are sorted first.

    Returns
    -------
    list[int]
        Node ids, ascending.
    """
    candidates = sorted(connected - finished)
    count = max(1, int(fraction * len(connected)))
    if count >= len(candidates):
        return candidates
    return sorted(stream.choice(candidates, count, replace=False).tolist())
