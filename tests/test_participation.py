"""Who takes part in a round depends on the node ids and the generator alone."""

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord
from inprocess_grid import InProcessGrid
from small_task import raising_client

from codec import generator
from codec.messages import Participation, ReplayRequest
from codec.random import Stream, server_generator
from sim.direct_grid import node_ids
from strategies import RunFailed
from strategies.participation import choose_nodes, nodes_of_round, train_messages

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


def test_choice_of_a_seed_stays() -> None:
    draws = [_choose(set(), 0.5, seed) for seed in range(4)]
    assert draws == [[55, 430], [55, 430], [55, 430], [55, 88]]
    chosen = choose_nodes(set(range(1000, 1020)), {1003}, 0.3, generator(5, 2))
    assert chosen == [1001, 1004, 1007, 1012, 1013, 1014]


def test_ids_of_64_bits_stay_as_they_are() -> None:
    connected = {5, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 1, *node_ids(20)}
    for seed in range(20):
        chosen = choose_nodes(connected, set(), 0.5, generator(seed, 1))
        assert len(set(chosen)) == 12 and set(chosen) <= connected
        assert chosen == sorted(chosen) and all(type(node) is int for node in chosen)


def test_nodes_of_a_round_are_drawn_from_its_own_stream() -> None:
    grid = InProcessGrid([raising_client] * 10)
    participation = Participation(fraction_train=0.3, seed=4)
    rounds = [nodes_of_round(grid, participation, server_round) for server_round in (1, 2, 3)]
    for server_round, chosen in enumerate(rounds, start=1):
        stream = server_generator(4, server_round, Stream.SERVER_NODES)
        assert chosen == choose_nodes(set(grid.clients), set(), 0.3, stream)
    assert len({tuple(chosen) for chosen in rounds}) > 1
    assert nodes_of_round(grid, participation, 1, set(grid.clients)) == []


def test_messages_carry_each_nodes_own_request() -> None:
    nodes, config = node_ids(3), ConfigRecord({"site": "north", "seed": 99})

    def request_of(node_id: int) -> ReplayRequest:
        return ReplayRequest(server_round=2, seed=4, acknowledged=bytes([nodes.index(node_id)]))

    arrays = ArrayRecord([np.zeros(3, np.float32)])
    for k, message in enumerate(train_messages(nodes, request_of, config, arrays)):
        assert message.metadata.dst_node_id == nodes[k]
        assert message.metadata.message_type == "train"
        assert message.content["arrays"] is arrays  # one record for all: the ledger relies on it
        record = message.content["config"]
        assert isinstance(record, ConfigRecord)
        assert (record["site"], record["seed"], record["acknowledged"]) == ("north", 4, bytes([k]))
        assert ReplayRequest.from_entries(record) == request_of(nodes[k])
    (message,) = train_messages(nodes[:1], request_of, config)
    assert set(message.content) == {"config"}


def test_the_wait_for_nodes_has_an_end() -> None:
    grid = InProcessGrid([raising_client] * 2)
    for options in ({"min_available_nodes": 3}, {"min_train_nodes": 3}):
        with pytest.raises(RunFailed, match=r"2 of 3 nodes connected after .* start more nodes"):
            nodes_of_round(grid, Participation(**options), 1, timeout=0.05)


def test_at_least_so_many_are_asked_as_there_are() -> None:
    grid = InProcessGrid([raising_client] * 6)
    participation = Participation(fraction_train=0.1, min_train_nodes=4)
    assert len(nodes_of_round(grid, participation, 1)) == 4
    done = set(list(grid.clients)[:3])
    assert set(nodes_of_round(grid, participation, 1, done)) == set(grid.clients) - done
