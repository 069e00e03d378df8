"""Who takes part in a round depends on the node ids and the generator alone."""

import numpy as np
import pytest

from codec import generator
from strategies.participation import choose_nodes

NODES = {907, 12, 55, 430, 88}


def _choose(finished: set[int], fraction: float, seed: int = 0) -> list[int]:
    return choose_nodes(NODES, finished, fraction, generator(seed, 1))


def test_all_nodes_in_order() -> None:
    assert _choose(set(), 1.0) == sorted(NODES)


@pytest.mark.parametrize(("fraction", "count"), [(0.01, 1), (0.5, 2), (0.99, 4)])
def test_share_of_the_connected_nodes(fraction: float, count: int) -> None:
    chosen = _choose(set(), fraction)
    assert len(chosen) == count
    assert set(chosen) <= NODES


def test_finished_nodes_are_left_alone() -> None:
    assert _choose({12, 907}, 1.0) == [55, 88, 430]
    assert len(_choose({12, 907, 55, 88}, 0.5)) == 1
    assert _choose(NODES, 0.5) == []


def test_every_node_is_chosen_equally_often() -> None:
    draws = [_choose(set(), 0.4, seed) for seed in range(500)]
    counts = np.array([sum(node in draw for draw in draws) for node in sorted(NODES)])
    # Each is in 200 of 500 draws on average, with a standard deviation of 11.
    assert np.abs(counts - 200).max() < 45
