"""Which nodes take part in a round, and the messages that ask them."""

import time
from collections.abc import Callable, Iterable, Set
from logging import INFO

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.common import log
from flwr.serverapp import Grid

from codec.messages import ARRAYS, CONFIG, Participation, Request
from codec.random import Stream, server_generator
from strategies.errors import RunFailed

_POLL_SECONDS = 1.0
_LOG_SECONDS = 10.0


def nodes_of_round(
    grid: Grid,
    participation: Participation,
    server_round: int,
    finished: set[int] | None = None,
    timeout: float = 3600.0,
    busy: Set[int] = frozenset(),
) -> list[int]:
    """Wait for the nodes of a round and choose those that are asked.

    Parameters
    ----------
    grid : Grid
        Flower's connection to the nodes.
    participation : Participation
        How many to wait for and to ask; its seed and the round key the choice.
    server_round : int
    finished : set[int], optional
        Nodes with nothing left to send.
    timeout : float
        Seconds to wait for enough nodes.
    busy : set[int]
        Nodes that owe a reply to an earlier request: they count as connected, and are not asked.

    Returns
    -------
    list[int]
        Node ids, ascending; empty when all have finished, or are busy.

    Raises
    ------
    RunFailed
        If there are not enough nodes in time.
    """
    done = finished or set()
    minimum = max(participation.min_available_nodes, participation.min_train_nodes)
    connected = wait_for_nodes(grid, minimum, done, timeout)
    stream = server_generator(participation.seed, server_round, Stream.SERVER_NODES)
    node_ids = choose_nodes(
        connected, done | busy, participation.fraction_train, stream, participation.min_train_nodes
    )
    log(INFO, "configure_train: asking %d of %d nodes", len(node_ids), len(connected))
    return node_ids


def train_messages(
    node_ids: Iterable[int],
    request_of: Callable[[int], Request],
    config: ConfigRecord | None = None,
    arrays: ArrayRecord | None = None,
) -> list[Message]:
    """Return the messages that carry a round's requests.

    Parameters
    ----------
    node_ids : iterable of int
    request_of : callable
        From a node id to what the node is asked.
    config : ConfigRecord
        Entries of the caller's own ``train_config``; those of the request override them.
    arrays : ArrayRecord, optional
        The model, where the request needs it.
    """
    messages = []
    for node_id in node_ids:
        entries = {**(config or {}), **request_of(node_id).to_entries()}
        content = RecordDict({CONFIG: ConfigRecord(entries)})
        if arrays is not None:
            content[ARRAYS] = arrays
        messages.append(Message(content, node_id, MessageType.TRAIN))
    return messages


def wait_for_nodes(
    grid: Grid, minimum: int, finished: set[int], timeout: float = 3600.0
) -> set[int]:
    """Wait until enough nodes are connected.

    Parameters
    ----------
    grid : Grid
        Flower's connection to the nodes.
    minimum : int
        Nodes needed.
    finished : set[int]
        Nodes with nothing left to send; they count as connected, for nobody needs them.
    timeout : float
        Seconds to wait.

    Returns
    -------
    set[int]
        Connected and finished nodes.

    Raises
    ------
    RunFailed
        If there are not enough nodes in time.
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
        if waited >= timeout:
            raise RunFailed(
                f"{len(nodes)} of {minimum} nodes connected after {waited:.0f} s; start more "
                "nodes, or lower min_available_nodes"
            )
        time.sleep(min(_POLL_SECONDS, max(0.0, timeout - waited)))
    return nodes


def choose_nodes(
    connected: set[int],
    finished: set[int],
    fraction: float,
    stream: np.random.Generator,
    minimum: int = 1,
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
    minimum : int
        Least number chosen, as far as there are so many.

    Returns
    -------
    list[int]
        Node ids, ascending.
    """
    candidates = sorted(connected - finished)
    count = max(1, minimum, int(fraction * len(connected)))
    if count >= len(candidates):
        return candidates
    # Positions, not ids: NumPy makes floats of integers on both sides of 2**63.
    chosen = stream.choice(len(candidates), count, replace=False)
    return [candidates[position] for position in sorted(chosen)]
