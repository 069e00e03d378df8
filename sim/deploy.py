"""A deployment on this machine: SuperLink and SuperNodes as processes, with TLS and device keys."""

import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sim.keys import LOOPBACK, KeyFolder, make_keys, register
from sim.launcher import RunError, of_local_devices, run_app
from sim.run_config import ConfigValue, read_defaults
from sim.superlink import CONNECTION, Certificates, SuperLink, free_port, running_superlink

_REFUSED_SECONDS = 60.0
_POLL_SECONDS = 0.05


def run_deployment(
    app: Path,
    run_config: Mapping[str, ConfigValue],
    nodes: int,
    echo: Callable[[str], None] = print,
) -> None:
    """Run an app on a SuperLink and SuperNodes of 127.0.0.1, each with a key of its own.

    First, a SuperNode with a key that is not registered and one without TLS must be refused.
    Nothing that was started is left when this returns or raises, nor are keys.

    Parameters
    ----------
    app : Path
        Folder of the Flower app.
    run_config : Mapping
        Overrides of the app's run config; paths must be absolute. The first round waits for all
        nodes unless it says otherwise.
    nodes : int
        SuperNodes, each with a part of the data set.
    echo : callable
        Called with each line of the log.

    Raises
    ------
    RunError
        If a node is not refused that should be, or the run did not complete.
    KeysError, SuperLinkError
        If there are no keys, or no SuperLink.
    """
    with tempfile.TemporaryDirectory() as folder:
        keys = KeyFolder(Path(folder))
        make_keys(keys, LOOPBACK, nodes + 1)  # the last is never registered
        certificates = Certificates(keys.ca_certificate, keys.server_certificate, keys.server_key)
        with running_superlink(["--enable-supernode-auth"], certificates) as superlink:
            register(superlink.env, [keys.public_key(node) for node in range(nodes)], CONNECTION)
            echo(f"SuperLink on {superlink.address}, with TLS; {nodes} keys are registered")
            impostors = {
                "a SuperNode with an unknown key": [*_key(keys, nodes), *superlink.trust()],
                "a SuperNode without TLS": [*_key(keys, 0), "--insecure"],
            }
            refused = {name: start_node(superlink, how, 0, 1) for name, how in impostors.items()}
            for node in range(nodes):
                start_node(superlink, [*_key(keys, node), *superlink.trust()], node, nodes)
            for name, process in refused.items():
                echo(f"{name} is refused: exit code {_refusal(name, process)}")
            devices = of_local_devices(run_config, read_defaults(app))
            run_app(superlink, app, {"min-available-nodes": nodes, **devices}, echo=echo)


def start_node(
    superlink: SuperLink, options: Sequence[str], partition: int, partitions: int
) -> "subprocess.Popen[str]":
    """Start a SuperNode on a free port, to be stopped with the SuperLink."""
    config = f"partition-id={partition} num-partitions={partitions}"
    return superlink.start(
        [
            *("flower-supernode", "--superlink", superlink.address, *options),
            *("--port", str(free_port()), "--node-config", config),
        ]
    )


def _key(keys: KeyFolder, device: int) -> list[str]:
    return ["--auth-supernode-private-key", str(keys.device(device))]


def _refusal(name: str, process: "subprocess.Popen[str]") -> int:
    """Wait until a SuperNode gives up; `RunError` if it does not, or is content."""
    deadline = time.monotonic() + _REFUSED_SECONDS
    while (code := process.poll()) is None and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    if not code:
        raise RunError(f"{name} is not refused")
    return code
