"""The launcher, on a small throw-away app: five runs, each with another end."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from small_app import write_app

from sim.launcher import of_simulated_clients

pytestmark = [pytest.mark.slow, pytest.mark.simulation]

ROOT = Path(__file__).parents[1]

SERVER = """
import os, time
from pathlib import Path
from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    config = context.run_config
    print("GROUP", os.getpgid(0), "CWD", os.getcwd(), "RATE", config["rate"], flush=True)
    if config["mode"] == "fail":
        raise ValueError("rate = 7 is out of range")
    while len(list(grid.get_node_ids())) < 2:
        time.sleep(0.05)
    messages = [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]
    for reply in grid.send_and_receive(messages):
        print("CLIENT", reply.content["module"]["file"], flush=True)
    if config["mode"] == "block":
        time.sleep(1000)
    (Path(config["out-dir"]) / "done").touch()
"""

CLIENT = """
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.query()
def query(msg, context):
    return Message(RecordDict({"module": ConfigRecord({"file": __file__})}), reply_to=msg)
"""


@dataclass
class Launch:
    """A launcher in a process of its own, its output in a file."""

    process: "subprocess.Popen[bytes]"
    output: Path

    def text(self) -> str:
        return self.output.read_text()

    def wait_for(self, pattern: str) -> str:
        """Return the first match's group in the output, once it is there."""
        while not (match := re.search(pattern, self.text())):
            assert self.process.poll() is None, self.text()
            time.sleep(0.1)
        return match.group(1)


@pytest.fixture(scope="module")
def launches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Launch]]:
    folder = tmp_path_factory.mktemp("launcher")
    write_app(folder, server=SERVER, client=CLIENT)
    # Where the user stands there may be a package of the same name.
    (folder / "tiny").mkdir()
    (folder / "tiny" / "__init__.py").write_text("raise RuntimeError('imported from the cwd')")

    launches: dict[str, Launch] = {}
    try:
        launches["failed"] = _launch(folder, "failed", "fail")
        launches["term"] = _launch(folder, "term", "block")
        launches["term"].wait_for("(Successfully started run)")
        launches["term"].process.send_signal(signal.SIGTERM)
        launches["failed"].process.wait()
        launches["ok"] = _launch(folder, "ok", "succeed")
        launches["ctrl-c"] = _launch(folder, "ctrl-c", "block")
        launches["killed"] = _launch(folder, "killed", "block")
        launches["killed"].wait_for("(CWD) .*")
        launches["killed"].process.kill()
        launches["ctrl-c"].wait_for("(CLIENT) .*")
        launches["ctrl-c"].process.send_signal(signal.SIGINT)
        for launch in launches.values():
            launch.process.wait()
        yield launches
    finally:
        for launch in launches.values():
            launch.process.terminate()
            launch.process.wait()


def _launch(folder: Path, name: str, mode: str) -> Launch:
    output = folder / f"{name}.log"
    command = [
        *(sys.executable, "-m", "sim", "run", "--app", str(folder / "app"), "--clients", "2"),
        *("--config", f"mode={mode}", "rate=3", "--out", f"out-{name}"),
    ]
    with output.open("wb") as stream:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=stream,
            stderr=subprocess.STDOUT,
            preexec_fn=_heed_interrupts,
        )
    return Launch(process, output)


def _heed_interrupts() -> None:
    """Undo what a shell does to jobs in the background, which hand it down: to ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _leftovers(scratch: Path) -> list[str]:
    """Return the processes that stand in a folder, removed or not."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "cwd").startswith(str(scratch)):
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:  # ended meanwhile, or somebody else's
            continue
    return found


def test_simulated_clients_are_keyed_by_partition_and_remember_in_the_run_folder() -> None:
    app = {"client-key": "node", "state-dir": "", "out-dir": ""}
    assert of_simulated_clients({"out-dir": "/runs/1", "seed": 2}, app) == {
        "client-key": "partition",
        "state-dir": "/runs/1/devices",
        "out-dir": "/runs/1",
        "seed": 2,
    }
    own = {"out-dir": "/runs/1", "state-dir": "/mine", "client-key": "node"}
    assert of_simulated_clients(own, app) == own
    assert of_simulated_clients({"out-dir": "/runs/1"}, {"out-dir": ""}) == {"out-dir": "/runs/1"}


def test_success_prints_the_run_folder(launches: dict[str, Launch]) -> None:
    launch = launches["ok"]
    assert launch.process.returncode == 0, launch.text()
    folder = launch.output.parent / "out-ok"
    assert launch.text().endswith(f"run folder: {folder}\n")
    assert (folder / "done").exists()


def test_run_config_keeps_the_types_of_the_app(launches: dict[str, Launch]) -> None:
    assert launches["ok"].wait_for(r"RATE (\S+)") == "3.0"


def test_clients_import_from_the_bundle(launches: dict[str, Launch]) -> None:
    files = re.findall(r"CLIENT (\S+)", launches["ok"].text())
    assert len(files) == 2
    assert all("/flwr/apps/nobody.tiny." in file for file in files)


def test_failure_is_told_with_its_cause(launches: dict[str, Launch]) -> None:
    launch = launches["failed"]
    assert launch.process.returncode == 1
    folder = launch.output.parent / "out-failed"
    end = launch.text().rsplit("error: ", 1)[1]
    cause = "ValueError: rate = 7 is out of range"
    assert end == f"run finished:failed: {cause}; log: {folder / 'log.txt'}\n"
    assert [file.name for file in folder.iterdir()] == ["log.txt"]
    assert "Traceback" in (folder / "log.txt").read_text()


def test_no_colour_codes_in_files(launches: dict[str, Launch]) -> None:
    for launch in launches.values():
        assert "\x1b" not in launch.text()


@pytest.mark.parametrize("name", ["ctrl-c", "term"])
def test_interruption_is_told(launches: dict[str, Launch], name: str) -> None:
    assert launches[name].process.returncode == 130
    assert "interrupted" in launches[name].text()


@pytest.mark.parametrize("name", ["ok", "failed", "ctrl-c", "killed"])
def test_nothing_is_left(launches: dict[str, Launch], name: str) -> None:
    scratch = Path(launches[name].wait_for(r"CWD (\S+)")).parent
    deadline = time.monotonic() + (15 if name == "killed" else 0)
    while scratch.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not scratch.exists()
    assert _leftovers(scratch) == []
    with pytest.raises(ProcessLookupError):
        os.killpg(int(launches[name].wait_for(r"GROUP (\d+)")), 0)
