"""A Flower grid whose many nodes are a few processes of this machine."""

import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from logging import ERROR
from types import TracebackType
from uuid import uuid4

from flwr.app import Message
from flwr.common import log
from flwr.common.constant import ErrorCode

from sim.direct_grid import LocalGrid, node_ids
from sim.node_worker import Nodes, Outcome, Task, error_reply, serve
from sim.resident import resident_peak

_MOST_AT_ONCE = 16  # tasks on their way to a process
_POLL_SECONDS = 0.02
# One thread each, as Ray gives its actors: the processes share the cores.
_WORKER_ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
# Spawned, not forked: torch's threads do not survive a fork.
_SPAWN = multiprocessing.get_context("spawn")


class ClientProcessDied(RuntimeError):
    """A process that ended while a node answered, such as by lack of memory."""


class ProcessGrid(LocalGrid):
    """Gives each message to the next free process of a pool, which is its node for that time.

    A node is nothing but its number and what it remembers: 100,000 of them take no more than that,
    and each process loads the app and its data once. Requests and replies are those of Flower's
    engine: a ClientApp that raises gives an ``Error`` reply, and what it has changed in its
    ``Context.state`` is lost. A process that dies costs the reply of the node that it was; a new
    one takes its place. Two requests to a node that are out at the same time may both see the
    state before.

    Parameters
    ----------
    nodes : Nodes
    processes : int
        Size of the pool; 0: as many as there are cores.
    seed : int
        Seed of the node ids.

    Attributes
    ----------
    peak_bytes : int
        Most memory that one of the processes has had; known when they have ended.
    """

    def __init__(self, nodes: Nodes, processes: int = 0, seed: int = 0) -> None:
        self._nodes = nodes
        ids = node_ids(nodes.count, seed)
        self._partitions = {node_id: k for k, node_id in enumerate(ids)}
        self._states: dict[int, bytes] = {}
        self._waiting: deque[Message] = deque()
        self._replies: dict[str, Message] = {}
        self._changed = threading.Condition()
        self._closed = False
        self.peak_bytes = 0
        size = min(processes or os.cpu_count() or 1, nodes.count)
        self._workers = [_Worker(nodes) for _ in range(size)]
        self._threads = [
            threading.Thread(target=self._work, args=(worker,), daemon=True)
            for worker in self._workers
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> "ProcessGrid":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all processes; what nobody has answered yet is never answered."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self.peak_bytes = max(worker.end() for worker in self._workers)
        for thread in self._threads:
            thread.join()

    def get_node_ids(self) -> Iterable[int]:
        """Return all nodes."""
        return list(self._partitions)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand over messages to nodes.

        Raises
        ------
        ValueError
            If there is no such node.
        """
        sent = list(messages)
        for message in sent:
            if message.metadata.dst_node_id not in self._partitions:
                raise ValueError(f"there is no node {message.metadata.dst_node_id}")
            message.metadata.__dict__["_message_id"] = str(uuid4())
        with self._changed:
            self._waiting.extend(sent)
            self._changed.notify_all()
        return [message.metadata.message_id for message in sent]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have come, each once."""
        with self._changed:
            if not self._replies:
                return []
            return [self._replies.pop(key) for key in message_ids if key in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Hand over messages and wait for the replies, at most `timeout` seconds."""
        out = dict.fromkeys(self.push_messages(messages))
        until = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while out and (until is None or time.monotonic() < until):
            found = list(self.pull_messages(out))
            for reply in found:
                del out[reply.metadata.reply_to_message_id]
            replies += found
            if not found:
                time.sleep(_POLL_SECONDS)
        return replies

    # The threads, each with its process

    def _work(self, worker: "_Worker") -> None:
        while batch := self._take():
            tasks = [self._task(message) for message in batch]
            for message, outcome in zip(batch, worker.answers(tasks), strict=False):
                self._deliver(message, outcome)

    def _take(self) -> list[Message]:
        """Wait for messages; return a share of them, of different nodes; none: it is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return []
            share = -(-len(self._waiting) // (2 * len(self._workers)))
            batch: dict[int, Message] = {}
            while self._waiting and len(batch) < min(share, _MOST_AT_ONCE):
                node_id = self._waiting[0].metadata.dst_node_id
                if node_id in batch:  # its state is not known yet
                    break
                batch[node_id] = self._waiting.popleft()
            return list(batch.values())

    def _task(self, message: Message) -> Task:
        node_id = message.metadata.dst_node_id
        return Task(message, self._partitions[node_id], self._states.get(node_id, b""))

    def _deliver(self, message: Message, outcome: Outcome) -> None:
        outcome.reply.metadata.__dict__["_message_id"] = str(uuid4())
        if outcome.traceback:
            log(ERROR, outcome.traceback)
        with self._changed:
            if outcome.state is not None:
                self._states[message.metadata.dst_node_id] = outcome.state
            self._replies[message.metadata.message_id] = outcome.reply


class _Worker:
    """A process that answers tasks, and another one when it has died."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._ended = False
        self._start()

    def _start(self) -> None:
        self._connection, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=serve, args=(theirs, self._nodes), daemon=True)
        with _environment(_WORKER_ENVIRONMENT):
            self._process.start()
        theirs.close()

    def answers(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Yield an outcome for each task, in their order; fewer if the end comes first."""
        rest = deque(tasks)
        while rest:
            try:
                self._connection.send(list(rest))
                while rest:
                    outcome = self._connection.recv()
                    rest.popleft()
                    yield outcome
            except (EOFError, OSError):
                if self._ended:
                    return
                yield self._died(rest.popleft())

    def _died(self, task: Task) -> Outcome:
        """Start another process, and return what came of the task at which the last one died."""
        self._process.join()
        error = ClientProcessDied(f"the client's process ended, exit code {self._process.exitcode}")
        log(ERROR, error)
        self._connection.close()
        self._start()
        reply = error_reply(task.message, ErrorCode.CLIENT_APP_CRASHED, error)
        return Outcome(reply, None)

    def end(self) -> int:
        """End the process, whatever it does; return the most memory that it has had, in bytes."""
        self._ended = True
        peak = resident_peak(self._process.pid or 0)
        self._process.terminate()
        self._process.join()
        return peak


_environment_lock = threading.Lock()


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables for what is started meanwhile."""
    with _environment_lock:
        before = {key: os.environ.get(key) for key in values}
        os.environ.update(values)
        try:
            yield
        finally:
            for key, value in before.items():
                if value is None:
                    del os.environ[key]
                else:
                    os.environ[key] = value
