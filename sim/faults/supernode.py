"""A device as a process of its own: it takes requests and has a new process answer each.

As Flower's SuperNode does it: the client's state lives in this process's memory, each message is
handled by a process that ends with it, and when that dies the server gets an error reply.
"""

import json
import os
import pickle
import signal
import sys
import time
import uuid
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode

from codec.messages import CONFIG, PAYLOAD, REPLAY
from sim.faults import tampering
from sim.faults.spool import Spool, end_with_parent
from sim.run_config import ConfigValue

# Kinds of mishap.
NONE = ""
KILL = "kill"  # the client's process, so many seconds after its start
KILL_UNSENT = "kill-unsent"  # once it has remembered what it sends, before it does
KILL_STATEMENT = "kill-statement"  # before the so-manieth statement of its memory
POWER_OFF = "power-off"  # the whole SuperNode, so many seconds after a request came
POWER_OFF_UNSENT = "power-off-unsent"  # the whole SuperNode, the reply being ready
DELAY = "delay"  # the reply, by so many seconds
DUPLICATE = "duplicate"  # the reply comes twice
STALE = "stale"  # the reply before comes once more, in place of this one
AGAIN = "again"  # the request is handled twice, and the first reply thrown away
TRUNCATE, FLIP = "truncate", "flip"  # the payload
MANGLED = (TRUNCATE, FLIP)
KILLS = (KILL, KILL_UNSENT, KILL_STATEMENT, POWER_OFF, POWER_OFF_UNSENT)

_POLL = 0.01
_REPLY, _HAPPENED = "reply", ".happened"


@dataclass(frozen=True)
class Mishap:
    """What befalls one request for samples.

    Attributes
    ----------
    kind : str
        One of the above.
    amount : float
        Seconds, the number of a statement, or the share of the payload at which it is hit.
    """

    kind: str
    amount: float = 0.0


@dataclass(frozen=True)
class NodeJob:
    """What a SuperNode is started with.

    Attributes
    ----------
    spool : Path
    node_id : int
    node_config : dict
    run_config : dict
    mishaps : Path
        Folder of what is to befall the requests for samples to come, a file each.
    log : Path
    env : dict
    """

    spool: Path
    node_id: int
    node_config: dict[str, ConfigValue]
    run_config: dict[str, ConfigValue]
    mishaps: Path
    log: Path
    env: dict[str, str]


def plan(folder: Path, mishap: Mishap) -> None:
    """Add a mishap to those that are to come."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{time.monotonic_ns():020}-{uuid.uuid4().hex[:6]}"
    part = folder / f".{name}"
    part.write_text(json.dumps(asdict(mishap)))
    os.rename(part, folder / name)


def planned(folder: Path) -> int:
    """Return how many mishaps are still to come."""
    return sum(path.name[0] != "." for path in folder.glob("*"))


def happened(folder: Path) -> list[str]:
    """Return the kinds of the mishaps that did happen: what was to be killed had not yet ended."""
    try:
        return (folder / _HAPPENED).read_text().split()
    except FileNotFoundError:
        return []


def run_supernode(job: NodeJob) -> None:
    """Answer requests until this process is killed."""
    redirect_output(job.log)
    os.environ.update(job.env)
    tampering.shift_clock(job.spool / "clock")
    node = _Node(job, Spool(job.spool))
    node.spool.connect(job.node_id, node.instance)
    while True:
        end_with_parent()
        request = node.spool.take(job.node_id, node.instance)
        if request is None:
            time.sleep(_POLL)
        else:
            node.answer(request)


def redirect_output(log: Path) -> None:
    """Lead this process's output to a file, and make it a group of its own."""
    os.setpgid(0, 0)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, sys.stdout.fileno())
    os.dup2(file, sys.stderr.fileno())


class _Node:
    def __init__(self, job: NodeJob, spool: Spool) -> None:
        self.job, self.spool = job, spool
        self.instance = uuid.uuid4().hex
        self._place = job.spool / f"node-{job.node_id}-{self.instance}"
        self._place.mkdir()
        self._context = Context(
            run_id=1,
            node_id=job.node_id,
            node_config=dict(job.node_config),
            state=RecordDict(),
            run_config=dict(job.run_config),
        )
        self._before: Message | None = None  # the last reply with samples

    def answer(self, request: Message) -> None:
        mishap = self._mishap() if _mode(request) == REPLAY else Mishap(NONE)
        if mishap.kind == AGAIN:
            self._finish(request, self._start(request, mishap))
        child = self._start(request, mishap)
        if mishap.kind in (KILL, POWER_OFF):
            time.sleep(mishap.amount)
        if mishap.kind == POWER_OFF:
            self._power_off(mishap)
        if mishap.kind == KILL:
            os.kill(child, signal.SIGKILL)
        reply = self._finish(request, child)
        died = reply.has_error() and reply.error.code == ErrorCode.CLIENT_APP_CRASHED
        if mishap.kind == POWER_OFF_UNSENT:
            self._power_off(mishap)
        if mishap.kind == DELAY:
            time.sleep(mishap.amount)
        sent = self._sent(request, reply, mishap)
        if died if mishap.kind in KILLS else mishap.kind in (AGAIN, DELAY) or sent != [reply]:
            self._note(mishap)
        self.spool.reply(request.metadata.message_id, sent)
        if reply.has_content() and _mode(request) == REPLAY:
            self._before = reply

    def _note(self, mishap: Mishap) -> None:
        """Remember that a mishap has happened."""
        with (self.job.mishaps / _HAPPENED).open("a") as file:
            file.write(f"{mishap.kind}\n")

    def _power_off(self, mishap: Mishap) -> None:
        self._note(mishap)
        os.killpg(0, signal.SIGKILL)
        time.sleep(60)

    def _mishap(self) -> Mishap:
        waiting = sorted(path for path in self.job.mishaps.glob("*") if path.name[0] != ".")
        if not waiting:
            return Mishap(NONE)
        mishap = Mishap(**json.loads(waiting[0].read_text()))
        waiting[0].unlink()
        return mishap

    def _start(self, request: Message, mishap: Mishap) -> int:
        """Start the process that handles a request."""
        (self._place / _REPLY).unlink(missing_ok=True)
        child = os.fork()
        if child:
            return child
        try:
            self._handle(request, mishap)
        finally:
            os._exit(0)

    def _handle(self, request: Message, mishap: Mishap) -> None:
        """Do as Flower's client process does: reply and state are handed over together."""
        from fl_app.client_app import app

        if mishap.kind == KILL_STATEMENT:
            tampering.die_at(tampering.STATEMENT, int(mishap.amount))
        context = deepcopy(self._context)
        try:
            reply = app(request, context)
        except Exception as error:
            print(f"client failed: {error!r}", file=sys.stderr, flush=True)
            told = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, str(error))
            reply = Message(told, reply_to=request)
        if mishap.kind == KILL_UNSENT:
            tampering.die()
        part = self._place / "part"
        part.write_bytes(pickle.dumps((reply, context.state)))
        os.rename(part, self._place / _REPLY)

    def _finish(self, request: Message, child: int) -> Message:
        """Wait for the process; return the reply, and remember the state that it leaves."""
        os.waitpid(child, 0)
        try:
            data = (self._place / _REPLY).read_bytes()
        except FileNotFoundError:
            error = Error(ErrorCode.CLIENT_APP_CRASHED, "the client's process died")
            return Message(error, reply_to=request)
        reply, self._context.state = pickle.loads(data)
        assert isinstance(reply, Message)
        return reply

    def _sent(self, request: Message, reply: Message, mishap: Mishap) -> list[Message]:
        """Return what arrives of a reply."""
        if mishap.kind == DUPLICATE:
            return [reply, reply]
        if mishap.kind == STALE and self._before is not None:
            return [Message(self._before.content, reply_to=request)]
        if mishap.kind in MANGLED and reply.has_content():
            return [Message(_mangled(reply.content, mishap), reply_to=request)]
        return [reply]


def _mode(request: Message) -> str:
    record = request.content.get(CONFIG)
    return str(record.get("mode", "")) if isinstance(record, ConfigRecord) else ""


def _mangled(content: RecordDict, mishap: Mishap) -> RecordDict:
    """Return a reply with its payload hit at a share of its length; an empty one as it is."""
    content = deepcopy(content)
    record: Any = content[PAYLOAD]
    data = bytearray(record["samples"])
    if data:
        at = int(mishap.amount * 8 * len(data))
        if mishap.kind == TRUNCATE:
            data = data[: at // 8]
        else:
            data[at // 8] ^= 1 << at % 8
        record["samples"] = bytes(data)
    return content
