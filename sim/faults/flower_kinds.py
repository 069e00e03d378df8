"""Faults of a deployment: SuperLink, SuperNodes and their processes killed, and started again."""

import time
from collections.abc import Callable
from typing import Any

from sim.faults.deployment import Deployment
from sim.faults.fault import FLOWER, Fault

_ROUND_SECONDS = 6.0  # that a round takes, about
# A round does not wait for the node that a killed SuperNode was, nor for a dead client's error.
# A round takes some seconds, as each message starts a Python process.
_SMALL: dict[str, Any] = {"engine": FLOWER, "devices": 2, "rounds": 3, "slack": 3}
_HURRIED = {"round-timeout": 60.0, "quorum": 0.5}


def superlink_killed(deployment: Deployment, number: int) -> None:
    """Kill the SuperLink alone and start it again; the app's server goes on."""
    deployment.submit()
    for server_round in range(1, number + 1):
        deployment.wait_for_round(server_round)
        sleep_within_round(deployment)
        deployment.kill_superlink()
        time.sleep(deployment.rng.uniform(0.0, 3.0))
        deployment.restart_superlink()
    deployment.finish()


def machine_killed(deployment: Deployment, number: int) -> None:
    """Kill SuperLink, SuperExec and the app's server; start them again, and resume the run."""
    deployment.submit()
    for server_round in range(1, number + 1):
        deployment.wait_for_round(server_round)
        sleep_within_round(deployment)
        deployment.kill_server()
        deployment.restart_server()
        deployment.submit(resume=True)
    deployment.finish()


def server_app_killed(deployment: Deployment, number: int) -> None:
    """Kill the process of the app's server, and resume the run in a new one."""
    deployment.submit()
    for server_round in range(1, number + 1):
        deployment.wait_for_round(server_round)
        sleep_within_round(deployment)
        deployment.kill_server_app()
        deployment.submit(resume=True)
    deployment.finish()


def supernodes_killed(*, state: bool) -> Callable[[Deployment, int], None]:
    """Return what kills SuperNodes in a round and starts them again."""

    def inject(deployment: Deployment, number: int) -> None:
        deployment.submit()
        for index in range(number):
            deployment.wait_for_round(index + 1)
            sleep_within_round(deployment)
            device = deployment.devices[index % len(deployment.devices)]
            deployment.kill_device(device)
            deployment.restart_device(device, state=state)
        deployment.finish()

    return inject


def clients_killed(deployment: Deployment, number: int) -> None:
    """Kill the processes that handle messages."""
    deployment.submit()
    deployment.wait_for_round(1)
    for _ in range(number):
        deployment.kill_client()
        time.sleep(deployment.rng.uniform(0.0, _ROUND_SECONDS))
    deployment.finish()


def all_killed(deployment: Deployment, number: int) -> None:
    """Kill a SuperLink, a SuperNode and the server's machine, in turn, in one run."""
    deployment.submit()
    for index in range(number):
        deployment.wait_for_round(index + 1)
        sleep_within_round(deployment)
        if index % 3 == 0:
            device = deployment.devices[index % len(deployment.devices)]
            deployment.kill_device(device)
            deployment.restart_device(device)
        elif index % 3 == 1:
            deployment.kill_superlink()
            deployment.restart_superlink()
        else:
            deployment.kill_server()
            deployment.restart_server()
            deployment.submit(resume=True)
    deployment.finish()


def sleep_within_round(deployment: Deployment) -> None:
    """Wait for a random part of a round."""
    time.sleep(deployment.rng.uniform(0.0, _ROUND_SECONDS))


OF_FLOWER = (
    Fault("SuperLink killed, restarted with its database", superlink_killed, 2, 0, **_SMALL),
    Fault("server's machine killed, run resumed", machine_killed, 2, 0, **_SMALL),
    Fault("ServerApp killed, run resumed", server_app_killed, 2, 0, **_SMALL),
    Fault(
        "SuperNode killed in a round, without key, with state",
        supernodes_killed(state=True), 3, 0, config=_HURRIED, **_SMALL,
    ),
    Fault(
        "SuperNode killed in a round, without key, without state",
        supernodes_killed(state=False), 2, 0, config=_HURRIED, **_SMALL,
    ),
    Fault(
        "SuperNode killed in a round, with key, with state",
        supernodes_killed(state=True), 2, 0, config=_HURRIED, **_SMALL, with_keys=True,
    ),
    Fault("ClientApp killed in a round", clients_killed, 3, 0, config=_HURRIED, **_SMALL),
    Fault(
        "SuperNode, SuperLink and server's machine killed in one run",
        all_killed, 3, 3, config=_HURRIED, **_SMALL,
    ),
)  # fmt: skip
