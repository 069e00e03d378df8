"""Requests and replies of a run: few are out at once, and a round need not wait for all."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from logging import INFO, WARNING
from typing import Any

from flwr.app import Message
from flwr.common import log
from flwr.serverapp import Grid

from strategies.window import Window

_PATIENCE = 3.0  # timeouts after which a reply is given up
_LEAST_PATIENCE = 90.0  # seconds; until then Flower knows of a node that died
# So long, at least, a request stays valid, as devices whose clocks are ahead take it for older.
_LEAST_TTL = 600.0
_SAY_SECONDS = 10.0
# How long to wait before looking again: a share of what was waited already, within limits.
_SHARE, _SHORTEST, _LONGEST = 0.05, 0.05, 1.0


@dataclass(frozen=True)
class Owed:
    """A request whose reply is still out.

    Attributes
    ----------
    node_id : int
    asked_at : float
        By the post's clock.
    patience : float
        Seconds after which the reply is given up.
    """

    node_id: int
    asked_at: float
    patience: float


@dataclass
class _Exchange:
    """What one call of `Post.send_and_receive` sends and hears.

    Attributes
    ----------
    unsent : deque of Message
        Requests that wait for a place in the window.
    started : float
        By the post's clock.
    timeout : float, optional
        Seconds.
    on_reply : callable, optional
    asked : dict of str to int
        Nodes by the ids of the requests that were sent.
    replies : list of Message
        In the order of their arrival.
    heard_at : float
        When the last of them came; at first `started`.
    """

    unsent: deque[Message]
    started: float
    timeout: float | None
    on_reply: Callable[[Message], None] | None = None
    asked: dict[str, int] = field(default_factory=dict)
    replies: list[Message] = field(default_factory=list)
    heard_at: float = 0.0

    def __post_init__(self) -> None:
        self.heard_at = self.started

    def hear(self, reply: Message, now: float) -> None:
        """Take in a reply."""
        self.replies.append(reply)
        self.heard_at = now
        if self.on_reply is not None:
            self.on_reply(reply)


class Post(Grid):
    """A grid on which a round ends with a share of the replies, or at its deadline.

    What is out then is remembered: its node is `busy`, and is not to be asked again while the
    reply may still come. Replies to earlier requests are taken in whenever the grid is asked for
    new ones, and kept until the caller takes them. After three timeouts, and no less than 90
    seconds, a reply is given up; the request itself is valid as long, but no less than ten minutes.
    A node that is connected and yet was given up rests for one round, then for two, four, and so
    on while it stays silent.

    Requests leave as others are answered, see `strategies.window`. Those that are still here when
    a round ends leave then: who is asked does not depend on the window.

    That needs a grid that sends and receives apart. On one that implements `send_and_receive`
    alone, or in another class than `push_messages` and `pull_messages`, as to watch or to window
    the traffic, all is left to that: who is silent then counts as not asked.

    Parameters
    ----------
    grid : Grid
        Flower's connection to the nodes.
    quorum : float
        Share of the asked nodes whose replies end a round, in (0, 1]; errors do not count.
    request_window : int
        Most requests that are out at once, 0: no limit; see `strategies.window`.
    clock, sleep : callable
        Seconds that pass, and a wait for some.
    """

    def __init__(
        self,
        grid: Grid,
        quorum: float = 1.0,
        request_window: int = 0,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._grid, self._quorum, self._clock, self._sleep = grid, quorum, clock, sleep
        self._apart = _sends_apart(grid)
        self._window = Window(request_window)
        self._owed: dict[str, Owed] = {}
        self._late: list[tuple[int, Message]] = []
        self._unhurried: set[int] = set()
        self._given_up: set[int] = set()
        self._round = 0
        self._silences: dict[int, int] = {}  # in a row
        self._rests: dict[int, int] = {}  # until after that round
        if quorum < 1 and not self._apart:
            log(WARNING, "quorum has no effect: the grid does not send and receive apart")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    # Who owes what

    def busy(self) -> set[int]:
        """Return nodes whose reply is out, or came late and was not taken yet, or that rest."""
        resting = {node for node, last in self._rests.items() if self._round <= last}
        return {owed.node_id for owed in self._owed.values()} | {n for n, _ in self._late} | resting

    def owes(self) -> bool:
        """Whether a reply is out, or came late and was not taken yet."""
        return bool(self._owed or self._late)

    @property
    def unhurried(self) -> set[int]:
        """Nodes that the last exchange did not wait for, as enough others had answered."""
        return self._unhurried

    def take_late(self) -> list[Message]:
        """Return replies to earlier exchanges, those of nodes that died since among them, once."""
        late, self._late = self._late, []
        return [message for _, message in late]

    def take_given_up(self) -> list[int]:
        """Return nodes whose reply was waited for in vain, once."""
        nodes, self._given_up = sorted(self._given_up), set()
        return nodes

    def look(self) -> None:
        """Take in what has come by now."""
        self._pull()
        self._give_up()

    def next_round(self) -> None:
        """Take in what has come by now; those that rest come nearer to being asked again."""
        self.look()
        self._round += 1
        # Who left, and comes back, is another process.
        connected = set(self.get_node_ids()) if self._rests else set()
        self._rests = {node: last for node, last in self._rests.items() if node in connected}

    def wake_all(self) -> None:
        """Let nobody rest."""
        self._rests = {}

    def wait_for_late(self, timeout: float) -> None:
        """Wait until a reply to an earlier request comes, or none is out any more."""
        self._wait(self._exchange((), timeout), lambda: bool(self._late))

    # A grid

    def send_and_receive(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,
        on_reply: Callable[[Message], None] | None = None,
    ) -> Iterable[Message]:
        """Send messages and wait for as many replies as a round needs.

        Parameters
        ----------
        messages : iterable of Message
        timeout : float, optional
            Seconds; by default there is no limit.
        on_reply : callable, optional
            Called with each reply as it comes, while others are out; not on a grid that does not
            send and receive apart.
        """
        sent = list(messages)
        self._unhurried = set()
        if not self._apart:
            return list(self._grid.send_and_receive(sent, timeout=timeout))
        exchange = self._exchange(sent, timeout, on_reply)
        try:
            self._send(exchange)
        except NotImplementedError:
            self._apart = False
            return self.send_and_receive(sent, timeout=timeout)

        def enough() -> bool:
            needed = self._quorum * (len(exchange.asked) + len(exchange.unsent)) - 1e-9
            return sum(not reply.has_error() for reply in exchange.replies) >= math.ceil(needed)

        if sent:
            self._wait(exchange, enough)
        self._push(exchange, len(exchange.unsent))
        if enough():
            out = exchange.asked.keys() & self._owed.keys()
            self._unhurried = {exchange.asked[key] for key in out}
        return exchange.replies

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Fetch replies."""
        return self._grid.pull_messages(message_ids)

    def get_node_ids(self) -> Iterable[int]:
        """Return the connected nodes, busy ones among them."""
        return self._grid.get_node_ids()

    @property
    def run(self) -> Any:
        """The run, as the inner grid knows it."""
        return self._grid.run

    def set_run(self, run: Any) -> None:
        """Hand down the run."""
        self._grid.set_run(run)

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Make a message, as old code does."""
        return self._grid.create_message(*args, **kwargs)

    # Details

    def _exchange(
        self,
        messages: Iterable[Message],
        timeout: float | None,
        on_reply: Callable[[Message], None] | None = None,
    ) -> _Exchange:
        return _Exchange(deque(messages), self._clock(), timeout, on_reply)

    def _send(self, exchange: _Exchange) -> None:
        """Send as many requests as the window has places for."""
        if not exchange.unsent:
            return
        now = self._clock()
        waiting = (
            now - self._owed[key].asked_at for key in exchange.asked.keys() & self._owed.keys()
        )
        self._push(exchange, int(min(self._window.places(waiting), len(exchange.unsent))))

    def _push(self, exchange: _Exchange, count: int) -> None:
        """Send the next requests; those that cannot be sent are left out."""
        if not count:
            return
        messages = [exchange.unsent.popleft() for _ in range(count)]
        now, timeout = self._clock(), exchange.timeout
        patience = math.inf if timeout is None else max(_PATIENCE * timeout, _LEAST_PATIENCE)
        for message in messages:
            ttl = min(message.metadata.ttl, max(patience, _LEAST_TTL))
            message.metadata.ttl = ttl + now - exchange.started  # it counts from the making
        ids = list(self._grid.push_messages(messages))
        if len(ids) != count:
            ids = [m.metadata.message_id if m.metadata.message_id in ids else "" for m in messages]
        for message_id, message in zip(ids, messages, strict=True):
            if message_id:
                node_id = message.metadata.dst_node_id
                exchange.asked[message_id] = node_id
                self._owed[message_id] = Owed(node_id, now, patience)

    def _wait(self, exchange: _Exchange, enough: Callable[[], bool]) -> None:
        """Take in replies until there are enough, none is out, or the time is up.

        An exchange that asks nothing waits for the replies to earlier ones.
        """
        started = said_at = exchange.started
        asks = bool(exchange.asked or exchange.unsent)
        while True:
            self._pull(exchange)
            self._send(exchange)
            now = self._clock()
            out = exchange.asked.keys() & self._owed.keys() if asks else self._owed
            left = math.inf if exchange.timeout is None else started + exchange.timeout - now
            if enough() or not (out or exchange.unsent) or left < _SHORTEST / 100:
                break
            if now - said_at >= _SAY_SECONDS:
                said_at = now
                number = len(out) + len(exchange.unsent)
                log(INFO, "waiting for the replies of %d nodes for %.0f s", number, now - started)
            # Where places are few, the next request waits for this one to be seen.
            since = started if self._window.is_open else exchange.heard_at
            pause = min(_LONGEST, max(_SHORTEST, _SHARE * (now - since)))
            self._sleep(min(pause, left))
        self._give_up()

    def _pull(self, exchange: _Exchange | None = None) -> None:
        """Take in the replies that have come; those to other exchanges are late."""
        for reply in self._grid.pull_messages(list(self._owed)) if self._owed else ():
            key = reply.metadata.reply_to_message_id
            owed = self._owed.pop(key, None)
            if owed is None:  # a grid that brings a reply twice
                continue
            now = self._clock()
            if not reply.has_error():
                self._silences.pop(owed.node_id, None)
            if exchange is not None and key in exchange.asked:
                self._window.heard(now - owed.asked_at)
                exchange.hear(reply, now)
            else:
                self._late.append((owed.node_id, reply))

    def _give_up(self) -> None:
        now = self._clock()
        for key, owed in list(self._owed.items()):
            if now - owed.asked_at >= owed.patience:
                del self._owed[key]
                self._given_up.add(owed.node_id)
                times = self._silences.get(owed.node_id, 0)
                self._silences[owed.node_id] = times + 1
                self._rests[owed.node_id] = self._round + 2**times


def _sends_apart(grid: Grid) -> bool:
    """Whether a grid's `send_and_receive` is made of its own pushing and pulling."""
    places = [
        next(kind for kind in type(grid).__mro__ if name in vars(kind))
        for name in ("send_and_receive", "push_messages", "pull_messages")
    ]
    return len(set(places)) == 1
