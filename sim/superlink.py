"""A Flower SuperLink of our own: in isolation, for one purpose, and stopped with all it started."""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

CONNECTION = "sim"  # its name in Flower's configuration

_PORT_ATTEMPTS = 5
_START_SECONDS = 60.0
_STOP_SECONDS = 10
_POLL_SECONDS = 0.05
# For glibc: messages of a model's size come and go in every round, and giving their memory back to
# the system takes longer than filling it. One arena: what a thread frees is then of use to all.
KEEP_FREED_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TOP_PAD_": str(64 << 20),
    "MALLOC_TRIM_THRESHOLD_": "-1",
}
# Ray's socket paths must stay below 104 bytes, of which it needs some 75 itself.
_LONGEST_TEMPORARY_FOLDER = 16


class SuperLinkError(RuntimeError):
    """The SuperLink did not start; the message has its log."""


@dataclass(frozen=True)
class SuperLink:
    """A running SuperLink and its SuperExec.

    Attributes
    ----------
    address : str
        ``host:port`` of all its APIs.
    group : int
        Process group of both and of all that they start.
    cwd : Path
        Empty folder in which they run.
    env : Mapping[str, str]
        Their environment, in which ``flwr`` knows this SuperLink as `CONNECTION`.
    certificates : Certificates or None
        None if it speaks plain HTTP.
    """

    address: str
    group: int
    cwd: Path
    env: Mapping[str, str]
    certificates: "Certificates | None" = None

    def trust(self) -> list[str]:
        """Return the options by which Flower's programs trust this SuperLink."""
        if self.certificates is None:
            return ["--insecure"]
        return ["--root-certificates", str(self.certificates.authority)]

    def start(
        self, command: Sequence[str], stdout: int | IO[str] = subprocess.DEVNULL
    ) -> "subprocess.Popen[str]":
        """Start one of Flower's programs in this environment, to be stopped with the rest."""
        return start(command, self.env, self.cwd, self.group, stdout)


@dataclass(frozen=True)
class Certificates:
    """Files of a server that speaks TLS.

    Attributes
    ----------
    authority : Path
        Certificate of the authority that signed the server's.
    server, key : Path
        The server's certificate, for 127.0.0.1 among others, and its private key.
    """

    authority: Path
    server: Path
    key: Path


@contextmanager
def running_superlink(
    options: Sequence[str] = (), certificates: Certificates | None = None
) -> Iterator[SuperLink]:
    """Start SuperLink and SuperExec on a free port; stop them and all that they started.

    Parameters
    ----------
    options : sequence of str
        More options of ``flower-superlink``, such as ``--simulation``.
    certificates : Certificates, optional
        For TLS; plain HTTP by default.

    Raises
    ------
    SuperLinkError
        If it does not serve.
    """
    with scratch_folder() as scratch:
        cwd = scratch / "cwd"  # empty: simulated clients import from here before the app's bundle
        cwd.mkdir()
        env = isolated_environment(scratch)
        process = None
        try:
            for _ in range(_PORT_ATTEMPTS):
                address, log = f"127.0.0.1:{free_port()}", scratch / "superlink.log"
                command = superlink_command(address, certificates, options)
                process = _start_superlink(command, env, cwd, log)
                if _is_listening(process, log):
                    break
            else:
                raise SuperLinkError(f"{log.read_text()}\nno SuperLink on {_PORT_ATTEMPTS} ports")
            _write_connection(Path(env["FLWR_HOME"]), address, certificates)
            superlink = SuperLink(address, process.pid, cwd, env, certificates)
            # Ours, instead of the one that SuperLink would detach: so one signal reaches all.
            superlink.start(
                ["flower-superexec", *superlink.trust(), "--runtime-api-address", address]
            )
            with guarded(process.pid, scratch):
                yield superlink
        finally:
            if process is not None:
                stop_group(process.pid)
                _stop_detached(cwd)


def superlink_command(
    address: str, certificates: Certificates | None, options: Sequence[str] = ()
) -> list[str]:
    """Return the command that starts a SuperLink, which starts no SuperExec, on an address."""
    host, port = address.split(":")
    command = ["flower-superlink", "--isolation", "process", "--host", host, "--port", port]
    return [*command, *_tls(certificates), *options]


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def interrupt(number: int, _: FrameType | None) -> NoReturn:
    """Handle a signal as Ctrl-C is handled: everything that was started is stopped."""
    raise KeyboardInterrupt


def stop_group(group: int) -> None:
    """Terminate a process group, at last by force, and wait until it is gone.

    Parameters
    ----------
    group : int
        Group id; children of this process in it are reaped.
    """
    # A second Ctrl-C waits until the first one's work is done.
    impatience = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, impatience)
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if not _signal_group(group, number) or _group_ends(group):
                return
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, impatience)


def _stop_detached(cwd: Path) -> None:
    """Terminate what SuperNodes have started in sessions of its own, at last by force.

    It would end by itself once it notices that its SuperNode is gone, but later. Found by the
    folder that it runs in, where the system tells.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + _STOP_SECONDS
        while (found := _processes_in(cwd)) and time.monotonic() < deadline:
            for process in found:
                with suppress(ProcessLookupError):
                    os.kill(process, number)
            time.sleep(_POLL_SECONDS)


def _processes_in(folder: Path) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended meanwhile, or somebody else's
            if (entry / "cwd").readlink().is_relative_to(folder):
                found.append(int(entry.name))
    return found


@contextmanager
def guarded(group: int, scratch: Path) -> Iterator[None]:
    """Have a group stopped and a folder removed even if this process is killed meanwhile."""
    signals = f"kill -s TERM -- -{group}; sleep {_STOP_SECONDS}; kill -s KILL -- -{group}"
    # Reads until the pipe closes, which the end of this process does.
    script = f"read _; {signals}; rm -rf {shlex.quote(str(scratch))}"
    with subprocess.Popen(
        ["sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,
    ) as guard:
        try:
            yield
        finally:
            guard.kill()


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a folder with a short path, which is removed at the end."""
    parent = tempfile.gettempdir()
    short = len(parent) <= _LONGEST_TEMPORARY_FOLDER
    folder = Path(tempfile.mkdtemp(prefix="sim-", dir=parent if short else "/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def isolated_environment(scratch: Path) -> dict[str, str]:
    """Return an environment in which Flower and Ray share nothing with others of the user."""
    inherited = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return inherited | {
        # Flower starts its own programs by name, whether the environment is activated or not.
        "PATH": sysconfig.get_path("scripts") + os.pathsep + os.environ.get("PATH", os.defpath),
        "PYTHONUNBUFFERED": "1",
        "FLWR_HOME": str(scratch / "flwr"),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_TMPDIR": str(scratch),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what Ray's own warning asks for
        **KEEP_FREED_MEMORY,
    }


def _write_connection(flwr_home: Path, address: str, certificates: Certificates | None) -> None:
    flwr_home.mkdir(exist_ok=True)
    root = f'root-certificates = "{certificates.authority}"' if certificates else "insecure = true"
    text = f'[superlink.{CONNECTION}]\naddress = "{address}"\n{root}\n'
    (flwr_home / "config.toml").write_text(text, encoding="utf-8")


def _tls(certificates: Certificates | None) -> list[str]:
    """Return the options of ``flower-superlink``."""
    if certificates is None:
        return ["--insecure"]
    return [
        *("--ssl-ca-certfile", str(certificates.authority)),
        *("--ssl-certfile", str(certificates.server)),
        *("--ssl-keyfile", str(certificates.key)),
    ]


def _start_superlink(
    command: Sequence[str], env: Mapping[str, str], cwd: Path, log: Path
) -> "subprocess.Popen[str]":
    with log.open("w") as output:
        return start(command, env, cwd, 0, output)


def start(
    command: Sequence[str],
    env: Mapping[str, str],
    cwd: Path,
    group: int,
    stdout: int | IO[str],
) -> "subprocess.Popen[str]":
    """Start a program with no input and its errors among its output.

    Parameters
    ----------
    command : sequence of str
    env : Mapping
        Its environment.
    cwd : Path
    group : int
        Process group; 0: a new one, of its own id.
    stdout : int or file
        As in `subprocess.Popen`.
    """
    return subprocess.Popen(
        command,
        env=env,
        cwd=cwd,
        process_group=group,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


def _is_listening(process: "subprocess.Popen[str]", log: Path) -> bool:
    """Wait until SuperLink serves; False if somebody else took the port meanwhile.

    Its log is asked, because another SuperLink on the port would answer a health request, too.
    """
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        ended = process.poll() is not None
        text = log.read_text()
        if "Uvicorn running on" in text:
            return True
        if ended and "address already in use" in text:
            return False
        if ended:
            raise SuperLinkError(f"{text}\nSuperLink ended with code {process.returncode}")
        time.sleep(_POLL_SECONDS)
    raise SuperLinkError(f"{log.read_text()}\nSuperLink does not serve after {_START_SECONDS} s")


def _group_ends(group: int) -> bool:
    deadline = time.monotonic() + _STOP_SECONDS
    while time.monotonic() < deadline:
        with suppress(ChildProcessError):
            while os.waitpid(-group, os.WNOHANG) != (0, 0):
                pass
        if not _signal_group(group, 0):
            return True
        time.sleep(_POLL_SECONDS)
    return False


def _signal_group(group: int, number: int) -> bool:
    """Signal a group; False if it is gone."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True
