"""Many nodes in a few processes: each has a state of its own, and fails by itself."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode
from small_app import write_app

from sim.direct_grid import node_ids
from sim.node_worker import Nodes
from sim.process_grid import ProcessGrid
from strategies.client_words import client_words
from strategies.post import Post

ROOT = Path(__file__).parents[1]
CLIENT = """
import os
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    known = context.state.setdefault("calls", ConfigRecord({"calls": 0}))
    known["calls"] += 1
    what = message.content["config"]["do"]
    if what == "raise":
        raise ValueError("no more room")
    if what == "die":
        os._exit(3)
    if what == "nothing":
        return None
    own = {"node": str(context.node_id), "seed": context.run_config["seed"]}
    answer = ConfigRecord({**known, **context.node_config, **own})
    if "arrays" in message.content:
        answer["sum"] = float(message.content["arrays"]["w"].numpy().sum())
        del message.content["arrays"]["w"]  # as nobody should, but it is the client's own
    return Message(RecordDict({"answer": answer}), reply_to=message)
"""


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessGrid]:
    folder = write_app(tmp_path_factory.mktemp("app"), client=CLIENT)
    with ProcessGrid(Nodes(5, str(folder), "tiny.client_app:app", {"seed": 4}), 2) as grid:
        yield grid


def _requests(nodes: list[int], *what: str, arrays: ArrayRecord | None = None) -> list[Message]:
    found = []
    for node_id, do in zip(nodes, what * len(nodes), strict=False):
        content = RecordDict({"config": ConfigRecord({"do": do})})
        if arrays is not None:
            content["arrays"] = arrays
        found.append(Message(content, node_id, "train"))
    return found


def _ask(grid: ProcessGrid, *what: str, arrays: ArrayRecord | None = None) -> list[Message]:
    """Ask all nodes the same, or each something else; replies in the order of the nodes."""
    nodes = node_ids(5)
    replies = list(grid.send_and_receive(_requests(nodes, *what, arrays=arrays), timeout=60))
    replies.sort(key=lambda reply: nodes.index(reply.metadata.src_node_id))
    assert [reply.metadata.src_node_id for reply in replies] == nodes
    return replies


def _answers(replies: list[Message]) -> list[dict[str, object]]:
    return [dict(reply.content["answer"]) for reply in replies]


def _calls(grid: ProcessGrid) -> list[object]:
    return [answer["calls"] for answer in _answers(_ask(grid, "count"))]


def test_every_node_has_its_own_id_partition_and_state(grid: ProcessGrid) -> None:
    assert list(grid.get_node_ids()) == node_ids(5)
    before = _calls(grid)
    answers = _answers(_ask(grid, "count"))
    assert [answer["calls"] for answer in answers] == [int(str(n)) + 1 for n in before]
    assert [answer["partition-id"] for answer in answers] == [*range(5)]
    assert {answer["num-partitions"] for answer in answers} == {5}
    assert {answer["seed"] for answer in answers} == {4}
    assert [answer["node"] for answer in answers] == list(map(str, node_ids(5)))


def test_what_a_client_raises_is_its_reply_and_its_state_stays(grid: ProcessGrid) -> None:
    before = _calls(grid)
    replies = _ask(grid, "count", "raise", "count", "count", "count")
    assert [reply.has_error() for reply in replies] == [False, True, False, False, False]
    error = replies[1].error
    assert error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert client_words(error.reason) == "no more room"
    assert _calls(grid) == [int(str(n)) + 2 - (k == 1) for k, n in enumerate(before)]


def test_no_message_is_an_error_for_which_nobody_waits(grid: ProcessGrid) -> None:
    error = _ask(grid, "count", "nothing", "count", "count", "count")[1].error
    assert client_words(error.reason) == "the ClientApp returned NoneType, and no Message"


def test_a_process_that_dies_costs_one_reply(grid: ProcessGrid) -> None:
    before = _calls(grid)
    replies = _ask(grid, "count", "count", "die", "count", "count")
    assert [reply.has_error() for reply in replies] == [False, False, True, False, False]
    assert replies[2].error.code == ErrorCode.CLIENT_APP_CRASHED
    assert client_words(replies[2].error.reason) == "the client's process ended, exit code 3"
    assert _calls(grid) == [int(str(n)) + 2 - (k == 2) for k, n in enumerate(before)]


def test_a_model_is_every_clients_own(grid: ProcessGrid) -> None:
    arrays = ArrayRecord({"w": Array(np.arange(4.0))})
    for _ in range(2):
        assert [answer["sum"] for answer in _answers(_ask(grid, "x", arrays=arrays))] == [6.0] * 5
    assert list(arrays) == ["w"]


def test_replies_may_be_fetched_later_and_a_round_may_end_without_all(grid: ProcessGrid) -> None:
    nodes = node_ids(5)
    ids = list(grid.push_messages(_requests(nodes, "count")))
    assert len(set(ids)) == 5
    post = Post(grid, quorum=0.4)
    replies = list(post.send_and_receive(_requests(nodes, "count"), timeout=60))
    assert 2 <= len(replies) <= 5
    found: list[Message] = []
    while len(found) < 5:
        found += grid.pull_messages(ids)
    assert {reply.metadata.reply_to_message_id for reply in found} == set(ids)
    assert not list(grid.pull_messages(ids))


def test_a_node_that_is_not_there_cannot_be_asked(grid: ProcessGrid) -> None:
    with pytest.raises(ValueError, match="there is no node 7"):
        grid.push_messages(_requests([7], "count"))


def test_an_app_that_cannot_be_loaded_is_told_by_every_reply(tmp_path: Path) -> None:
    folder = write_app(tmp_path, client="import no_such_package")
    with ProcessGrid(Nodes(2, str(folder), "tiny.client_app:app", {}), 1) as grid:
        replies = list(grid.send_and_receive(_requests(node_ids(2), "count"), timeout=60))
    assert [reply.error.code for reply in replies] == [ErrorCode.LOAD_CLIENT_APP_EXCEPTION] * 2
    assert "No module named 'no_such_package'" in str(replies[0].error.reason)


def test_processes_end_with_whoever_started_them(tmp_path: Path) -> None:
    folder = write_app(tmp_path, client=CLIENT)
    code = f"""
from sim.node_worker import Nodes
from sim.process_grid import ProcessGrid
import os, signal
if __name__ == "__main__":
    grid = ProcessGrid(Nodes(2, {str(folder)!r}, "tiny.client_app:app", {{}}), 2)
    print(*(worker._process.pid for worker in grid._workers), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    # Reads to the end, which is that of the last process that has the pipe.
    done = subprocess.run(
        [sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=60
    )
    pids = done.stdout.split()
    assert len(pids) == 2
    assert not [pid for pid in pids if _is_running(pid)]


def _is_running(pid: str) -> bool:
    """Whether there is such a process, and nobody is merely yet to be told of its end."""
    command = Path("/proc", pid, "cmdline")
    return command.exists() and bool(command.read_bytes())
