"""Following docs/deployment.md on one machine: its lines, given to a shell as they stand there."""

import json
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np
from doc_pages import BLOCKS, ROOT, Block
from images import fields
from PIL import Image
from started import MARK, started_with, stop_started_with

from sim.launcher import plain
from sim.superlink import free_port, isolated_environment, scratch_folder


def stands_for(folder: Path, port: int) -> dict[str, str]:
    """Return what is put here in place of words of the pages: one machine is all of theirs."""
    return {
        "fleet.example": "localhost",
        "SERVER": "localhost",
        # Without keys, whoever reaches the server may run code here.
        "0.0.0.0": "127.0.0.1",
        # Of nginx, which is not here, and of the server behind it.
        "8443": f"{port}",
        "8000": f"{port}",
        "/etc/flower": f"{folder}/etc",
        "/srv/photos": f"{folder}/photos",
        "$PWD/runs": f"{folder}/runs",  # the app's folder is the user's
    }


# Appended to run configs, so that a run is short; and to programs that serve, where the page leaves
# the port out: a free one.
SHORT = "num-rounds=1 samples-per-round=20 server-steps=5"
PORT = "--port"


def block(page: str, start: str) -> Block:
    [found] = [b for b in BLOCKS if b.page.name == page and b.text.startswith(start)]
    return found


KEYS = block("deployment.md", "python -m sim keys --out keys --host")
SUPERLINK = block("deployment.md", "flower-superlink --host")
CONNECTION = block("deployment.md", "[superlink.fleet]")
REGISTER = block("deployment.md", "python -m sim keys --out keys --register")
SUPERNODE = block("deployment.md", "flower-supernode --superlink")
SUPERNODE_OF_TUTORIAL = block("tutorial.md", "flower-supernode --superlink")
RUN = block("deployment.md", "flwr run . fleet --stream --run-config")
RUN_OF_KEYS = block("keys.md", "flwr run . fleet --stream --run-config")
RESUME = block("deployment.md", "flwr run . fleet --stream \\\n")
WITHOUT_KEYS = block("deployment.md", "flower-superlink --insecure")
OWN_DATA = block("deployment.md", "flower-supernode --insecure")
CONTAINER = block("deployment.md", "podman build")
SIMULATION = block("deployment.md", "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1")


@dataclass(frozen=True)
class Started:
    """A command of a page, and where what it prints goes."""

    line: str
    process: "subprocess.Popen[bytes]"
    stdout: Path
    stderr: Path

    def told(self) -> str:
        code = self.process.poll()
        ended = "runs" if code is None else f"exit code {code}"
        out, err = (plain(f.read_text(errors="replace")) for f in (self.stdout, self.stderr))
        return f"$ {self.line}\n[{ended}] stdout:\n{out[-4000:]}\nstderr:\n{err[-4000:]}\n"


class Walk:
    """One machine on which a page is followed.

    Parameters
    ----------
    folder : Path
        Empty; short, as Ray's sockets lie in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.mark, self.port = folder, uuid.uuid4().hex, free_port()
        self.stands_for = stands_for(folder, self.port)
        self.etc, self.home = folder / "etc", folder / "flwr"
        self.etc.mkdir()
        self.home.mkdir()
        self.started: list[Started] = []
        self.env = isolated_environment(folder) | {
            MARK: self.mark,
            "PYTHONPATH": str(ROOT),
            "XDG_STATE_HOME": str(folder / "state"),
            # Of the SuperLink that `flwr run` starts: the user's own, if any, is not asked.
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
            "FLWR_LOCAL_CONTROL_API_PORT": str(free_port()),
            "NO_COLOR": "1",
            "COLUMNS": "500",
        }
        # That the page sets it where it must be set is what is tested.
        del self.env["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"]

    def here(self, text: str) -> str:
        words = "|".join(map(re.escape, sorted(self.stands_for, key=len, reverse=True)))
        return re.sub(words, lambda found: self.stands_for[found[0]], text)

    def start(self, line: str, cwd: Path) -> Started:
        stem = self.folder / f"log-{len(self.started)}"
        out, err = stem.with_suffix(".out"), stem.with_suffix(".err")
        command = ["sh", "-c", self.here(line)]
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env=self.env,
                process_group=0,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
            )
        self.started.append(Started(command[-1], process, out, err))
        return self.started[-1]

    def run(self, line: str, cwd: Path) -> str:
        """Return what a command prints; it must end well."""
        started = self.start(line, cwd)
        with suppress(subprocess.TimeoutExpired):
            started.process.wait(timeout=180)
        assert started.process.returncode == 0, self.told()
        return plain(started.stdout.read_text() + started.stderr.read_text())

    def statuses(self, line: str) -> list[str]:
        """Return what ``flwr ls`` says of the runs that there were."""
        started = self.start(line, ROOT)
        with suppress(subprocess.TimeoutExpired):
            started.process.wait(timeout=60)
        assert started.process.returncode == 0, self.told()
        return [run["status"] for run in json.loads(started.stdout.read_text())["runs"]]

    def start_server(self, line: str) -> None:
        started = self.start(line, self.etc)
        deadline = monotonic() + 60
        while "Uvicorn running on" not in started.told():
            assert started.process.poll() is None and monotonic() < deadline, self.told()
            sleep(0.1)

    def start_node(self, line: str) -> None:
        self.start(f"{line} {PORT} {free_port()}", self.etc)

    def result(self, stream: str) -> dict[str, Any]:
        """Return the result of the run whose log this is."""
        folders = re.findall(r"run folder: (\S+)", stream)
        assert folders, self.told()
        result: dict[str, Any] = json.loads((Path(folders[-1]) / "result.json").read_text())
        return result | {"folder": folders[-1]}

    def told(self) -> str:
        return "\n".join(started.told() for started in self.started)


@contextmanager
def walk() -> Iterator[Walk]:
    """Follow a page in an empty folder, and leave nothing that runs."""
    with scratch_folder() as folder:
        walked = Walk(folder)
        try:
            yield walked
        finally:
            stop_started_with(walked.mark)
            for started in walked.started:
                started.process.wait()
    assert started_with(walked.mark) == {}


def with_config(line: str, more: str) -> str:
    """Append to the run config of a line."""
    changed, count = re.subn(r'(--run-config "(?:[^"\\]|\\.)*)"', rf'\1 {more}"', line)
    assert count == 1
    return changed


def device(line: str, number: int) -> str:
    """Return the line of device 0 as it is for another one."""
    assert "partition-id=0" in line
    line = line.replace("partition-id=0", f"partition-id={number}")
    return line.replace("device-0", f"device-{number}")


def start_with_keys(here: Walk) -> None:
    """Make keys of three devices, start the server with them, and say where it is."""
    here.run(*KEYS.lines, here.folder)
    for name in ("ca.crt", "server.pem", "server.key", *(f"devices/device-{n}" for n in "012")):
        shutil.copy(here.folder / "keys" / name, here.etc)
    here.start_server(*SUPERLINK.lines)
    (here.home / "config.toml").write_text(here.here(CONNECTION.text))


def write_photos(here: Walk) -> None:
    """Write what stands for the devices' photographs: six of each of two classes, and as many to
    test on."""
    here.env["QUANTDATA_CACHE"] = "off"  # these images are gone soon
    for part in ("train", "test"):
        for number, name in enumerate(("cats", "dogs")):
            folder = here.folder / "photos" / part / name
            folder.mkdir(parents=True)
            for index, pixels in enumerate(fields(6, (3, 16, 16), seed=number)):
                Image.fromarray(np.moveaxis(pixels, 0, -1)).save(folder / f"{index}.png")
