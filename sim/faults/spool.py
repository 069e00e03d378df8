"""Messages between processes as files: what a SuperLink does, without its seconds of polling.

A request waits in ``inbox/<node>`` until the node takes it, and its reply in ``replies`` until the
server takes that; both are written at once or not at all. Like a SuperLink's database they outlive
the processes at both ends. Of a node that was restarted or is gone, the server gets an error reply
for what it had taken, in another node's name, as Flower makes it.
"""

import os
import pickle
import time
import uuid
from collections.abc import Iterable, Sequence
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run

_GRACE = 0.3  # seconds until a node counts as gone
_POLL = 0.005
_LINK = 1  # node in whose name Flower answers for one that is gone


class Spool:
    """The folder.

    Parameters
    ----------
    root : Path
        Created with its parents.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("nodes", "inbox", "taken", "replies"):
            (root / name).mkdir(parents=True, exist_ok=True)

    # Nodes

    def connect(self, node_id: int, instance: str) -> None:
        """Let the server see a node, of which `instance` is the running process."""
        (self.root / "inbox" / str(node_id)).mkdir(exist_ok=True)
        _write(self.root / "nodes" / str(node_id), instance.encode())

    def disconnect(self, node_id: int) -> None:
        """Let the server no longer see it."""
        (self.root / "nodes" / str(node_id)).unlink(missing_ok=True)

    def node_ids(self) -> list[int]:
        """Return the nodes that are connected."""
        return sorted(int(path.name) for path in (self.root / "nodes").glob("[0-9]*"))

    # Requests

    def push(self, node_id: int, message_id: str, message: Message) -> None:
        """Leave a request to a node."""
        inbox = self.root / "inbox" / str(node_id)
        inbox.mkdir(exist_ok=True)
        _write(inbox / message_id, pickle.dumps(message))

    def take(self, node_id: int, instance: str) -> Message | None:
        """Return a node's oldest request, which is then its own."""
        inbox = self.root / "inbox" / str(node_id)
        waiting = [path for path in inbox.iterdir() if not path.name.startswith(".")]
        if not waiting:
            return None
        first = min(waiting, key=lambda path: path.stat().st_mtime_ns)
        data = first.read_bytes()
        _write(self.root / "taken" / first.name, instance.encode())
        first.unlink()
        message: Message = pickle.loads(data)
        return message

    def is_given_up(self, node_id: int, message_id: str) -> bool:
        """Whether no reply will come, as the process that would give it is gone."""
        node, taken = self.root / "nodes" / str(node_id), self.root / "taken" / message_id
        alive = _read(node)
        if alive is None:
            return True
        by = _read(taken)
        return by is not None and by != alive

    # Replies

    def reply(self, message_id: str, replies: Sequence[Message]) -> None:
        """Leave the reply to a request, maybe several times."""
        _write(self.root / "replies" / message_id, pickle.dumps(list(replies)))

    def collect(self, message_id: str) -> list[Message]:
        """Return the reply to a request, if it is there, as often as it came."""
        data = _read(self.root / "replies" / message_id)
        if data is None:
            return []
        (self.root / "replies" / message_id).unlink()
        replies: list[Message] = pickle.loads(data)
        return replies


class SpoolGrid(Grid):
    """The server's connection to the nodes of a spool."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._asked: dict[str, Message] = {}
        self._gone_since: dict[str, float] = {}

    def get_node_ids(self) -> Iterable[int]:
        """Return the connected nodes."""
        return self._spool.node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send requests."""
        end_with_parent()
        ids = []
        for message in messages:
            message_id = uuid.uuid4().hex
            message.metadata.__dict__["_message_id"] = message_id
            self._asked[message_id] = message
            self._spool.push(message.metadata.dst_node_id, message_id, message)
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there, and errors in place of those that never will be."""
        end_with_parent()
        found = []
        for message_id in list(message_ids):
            found += self._spool.collect(message_id) or self._error(message_id)
        return found

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send requests and wait for the replies."""
        missing = set(self.push_messages(messages))
        replies: list[Message] = []
        end = None if timeout is None else time.monotonic() + timeout
        while missing and (end is None or time.monotonic() < end):
            found = list(self.pull_messages(missing))
            replies += found
            missing -= {reply.metadata.reply_to_message_id for reply in found}
            time.sleep(_POLL)
        return replies

    def set_run(self, run: Run) -> None:
        """Not used."""

    @property
    def run(self) -> Run:
        """Not used."""
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Not used."""
        raise NotImplementedError

    def _error(self, message_id: str) -> list[Message]:
        """Return the error reply to a request whose node is gone for good."""
        request = self._asked[message_id]
        if not self._spool.is_given_up(request.metadata.dst_node_id, message_id):
            self._gone_since.pop(message_id, None)
            return []
        since = self._gone_since.setdefault(message_id, time.monotonic())
        if time.monotonic() - since < _GRACE:
            return []
        error = Error(ErrorCode.NODE_UNAVAILABLE, "the node is gone")
        reply = Message(error, reply_to=request)
        reply.metadata.__dict__["_src_node_id"] = _LINK
        return [reply]


def end_with_parent() -> None:
    """End this process once nobody is there who would stop it."""
    parent = parent_process()
    if parent is not None and not parent.is_alive():
        os._exit(1)


def _write(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(data)
    os.rename(part, path)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
