"""The real app on a SuperLink and two SuperNodes of this machine, and its traffic counters."""

import json
import os
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from sim.launcher import COMPLETED, describe_run, run_app
from sim.superlink import free_port, running_superlink

pytestmark = [pytest.mark.slow, pytest.mark.deployment]

ROOT = Path(__file__).parents[1]
NODES, ROUNDS, SAMPLES = 2, 2, 100
# Ledger and counter agree to the byte, unless Flower repeats a request that got no answer.
TOLERANCE = 0.02


# result.json, what the SuperLink says of the run, and its process group.
Run: TypeAlias = tuple[dict[str, Any], dict[str, Any], int]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("deployment")
    config = {
        "num-rounds": ROUNDS,
        "samples-per-round": SAMPLES,
        "server-steps": 20,
        "min-available-nodes": NODES,
        "out-dir": str(out),
        "state-dir": str(out / "devices"),
    }
    with running_superlink() as superlink:
        for node in range(NODES):
            superlink.start(
                [
                    *("flower-supernode", "--insecure", "--superlink", superlink.address),
                    *("--port", str(free_port())),
                    *("--node-config", f"partition-id={node} num-partitions={NODES}"),
                ]
            )
        run_app(superlink, ROOT, config)
        record = describe_run(superlink)
    return json.loads((out / "result.json").read_text()), record, superlink.group


def test_it_completes(run: Run) -> None:
    result, record, _ = run
    assert record["status"] == COMPLETED
    assert result["clients"] == NODES
    assert result["samples_sent"] == NODES * ROUNDS * SAMPLES
    assert result["failures"] == {}


@pytest.mark.parametrize(
    ("counter", "direction"), [("inbound", "uplink"), ("outbound", "downlink")]
)
def test_the_superlink_counts_the_same_bytes(run: Run, counter: str, direction: str) -> None:
    result, record, _ = run
    counted = record["network-traffic"][f"{counter}-bytes"]
    content, envelope = result[f"{direction}_bytes"], result["envelope_bytes"][direction]
    assert content + envelope == pytest.approx(counted, rel=TOLERANCE), (
        f"{direction}: content {content} B + envelope {envelope} B, "
        f"but the SuperLink counted {counted} B"
    )


def test_nothing_is_left(run: Run) -> None:
    _, _, group = run
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)
