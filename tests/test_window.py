"""Requests leave through a window, in whatever order and however late they are answered."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from late_grid import NEVER, LateGrid

from strategies.post import Post
from strategies.window import Window


class CountingGrid(LateGrid):
    """Keeps count of the requests that have no reply yet."""

    most = 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        found = super().push_messages(messages)
        self.most = max(self.most, len(self._on_the_way))
        return found

    pull_messages, send_and_receive = LateGrid.pull_messages, LateGrid.send_and_receive


def _echo(message: Message, context: Context) -> Message:
    return Message(RecordDict({"payload": ConfigRecord()}), reply_to=message)


def _grid(nodes: int, delay: Callable[[int, int], float]) -> CountingGrid:
    return CountingGrid([_echo] * nodes, delay)


def _post(grid: LateGrid, window: int, quorum: float = 1.0) -> Post:
    return Post(grid, quorum, window, clock=grid.clock, sleep=grid.sleep)


def _messages(grid: LateGrid) -> list[Message]:
    return [Message(RecordDict(), node, "train") for node in grid.clients]


@pytest.mark.parametrize(("window", "most"), [(1, 1), (5, 5), (0, 40), (100, 40)])
def test_no_more_requests_are_out_than_the_window_has_places(window: int, most: int) -> None:
    grid = _grid(40, lambda node, _: 0.1 + node % 3)
    replies = list(_post(grid, window).send_and_receive(_messages(grid), timeout=600))
    assert len(replies) == 40 and grid.most == most
    assert grid.asked == list(grid.clients)  # in the order in which they were given


def test_a_place_is_taken_again_soon_after_its_reply() -> None:
    """However long the round has lasted: 100 nodes of a second each, four at a time."""
    grid = _grid(100, lambda *_: 1.0)
    assert len(list(_post(grid, 4).send_and_receive(_messages(grid), timeout=600))) == 100
    assert 25.0 <= grid.now <= 25.0 * 1.1


def test_silent_nodes_keep_no_other_from_being_asked() -> None:
    """All places are taken by nodes that never answer: ten seconds later others have them."""
    grid = _grid(30, lambda node, _: NEVER if node < 5 else 1.0)
    post = _post(grid, 5)
    replies = list(post.send_and_receive(_messages(grid), timeout=60))
    assert len(replies) == 25
    assert 60.0 <= grid.now <= 60.1  # the round waits for the silent ones, as it does without
    assert post.busy() == set(list(grid.clients)[:5])
    grid = _grid(30, lambda node, _: NEVER if node < 5 else 1.0)
    replies = list(_post(grid, 5, quorum=25 / 30).send_and_receive(_messages(grid), timeout=60))
    assert len(replies) == 25 and grid.now < 10 + 5 * 1.2 + 1


def test_slow_nodes_do_not_open_the_window() -> None:
    """Where a reply takes half a minute, one that takes a minute is no reason to ask more."""
    grid = _grid(60, lambda node, _: 30.0 + node % 2 * 30.0)
    list(_post(grid, 6).send_and_receive(_messages(grid), timeout=3600))
    first_half_minute = 6 * 3  # nobody has answered yet: six more after ten seconds, and twenty
    assert grid.most == first_half_minute
    window = Window(6)
    for waited in (30.0, 30.0, 60.0):
        window.heard(waited)
    assert window.places([59.0, 119.0, 121.0]) == 4


def test_who_is_not_asked_in_time_is_asked_at_the_end() -> None:
    """The books say that all were asked, and so it is; their replies come late."""
    grid = _grid(12, lambda *_: 4.0)
    post = _post(grid, 3)
    messages = _messages(grid)
    replies = list(post.send_and_receive(messages, timeout=10))
    assert len(replies) == 6 and grid.asked == list(grid.clients)
    assert post.busy() == set(list(grid.clients)[6:]) and not post.unhurried
    grid.now = 14.2
    post.look()
    assert len(post.take_late()) == 6 and not post.busy()
    # A request is valid as long as the others, from when it has left.
    assert [message.metadata.ttl for message in messages[:3]] == [600.0] * 3
    assert [message.metadata.ttl for message in messages[-3:]] == pytest.approx([610.0] * 3)


@pytest.mark.parametrize("window", [0, 2])
def test_a_quorum_is_of_all_that_are_to_be_asked(window: int) -> None:
    grid = _grid(8, lambda *_: 1.0)
    post = _post(grid, window, quorum=0.5)
    replies = list(post.send_and_receive(_messages(grid), timeout=60))
    assert len(replies) == (4 if window else 8)  # without a window all come at once
    assert grid.asked == list(grid.clients)
    late = set(list(grid.clients)[len(replies) :])
    assert post.unhurried == post.busy() == late


def test_what_cannot_be_sent_takes_no_place() -> None:
    class Picky(CountingGrid):
        def push_messages(self, messages: Any) -> Any:
            sent = list(messages)
            if len(self.asked) < 8:  # nodes that are gone
                self.asked += [message.metadata.dst_node_id for message in sent]
                return [None] * len(sent)
            return super().push_messages(sent)

        pull_messages, send_and_receive = LateGrid.pull_messages, LateGrid.send_and_receive

    grid = Picky([_echo] * 20, lambda *_: 1.0)
    post = _post(grid, 4)
    assert len(list(post.send_and_receive(_messages(grid), timeout=60))) == 12
    assert grid.now < 4 and not post.busy()


def test_without_a_number_there_is_no_limit() -> None:
    assert Window(0).is_open and Window(0).places([0.0] * 10_000) == float("inf")
    assert Window(3).places([]) == 3 and not Window(3).is_open


def test_replies_are_told_of_while_others_are_out() -> None:
    grid = _grid(6, lambda node, _: 6.0 - node)
    told: list[tuple[int, float]] = []
    post = _post(grid, 0)
    replies = list(
        post.send_and_receive(
            _messages(grid),
            timeout=60,
            on_reply=lambda reply: told.append((reply.metadata.src_node_id, grid.now)),
        )
    )
    assert [node for node, _ in told] == list(grid.clients)[::-1]
    assert all(abs(now - due) < 0.5 for (_, now), due in zip(told, range(1, 7), strict=True))
    assert [reply.metadata.src_node_id for reply in replies] == [node for node, _ in told]
