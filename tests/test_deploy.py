"""One command: a deployment with TLS and keys refuses strangers, trains, and leaves nothing."""

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from started import MARK, started_with

pytestmark = [pytest.mark.slow, pytest.mark.deployment, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[1]
NODES = 3
# Of the 4,000 digits, in few rounds, as a round takes several seconds whatever is sent.
CONFIG = ("num-rounds=3", "samples-per-round=400", "server-steps=200")

Deployment: TypeAlias = tuple["subprocess.CompletedProcess[str]", Path, str]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    mark, out = uuid.uuid4().hex, tmp_path_factory.mktemp("deploy") / "run"
    command = [sys.executable, "-m", "sim", "deploy", "--nodes", str(NODES), "--out", str(out)]
    done = subprocess.run(
        [*command, "--config", *CONFIG],
        cwd=ROOT,
        env=os.environ | {MARK: mark},
        capture_output=True,
        text=True,
    )
    return done, out, mark


def result(out: Path) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads((out / "result.json").read_text())
    return parsed


def test_it_trains_to_95_percent(deployment: Deployment) -> None:
    done, out, _ = deployment
    assert done.returncode == 0, done.stdout + done.stderr
    assert result(out)["accuracy"] >= 0.95
    assert result(out)["clients"] == NODES
    assert result(out)["failures"] == {}
    assert result(out)["samples_sent"] == NODES * 3 * 400


@pytest.mark.parametrize("who", ["with an unknown key", "without TLS"])
def test_who_does_not_belong_is_refused(deployment: Deployment, who: str) -> None:
    done, _, _ = deployment
    assert f"a SuperNode {who} is refused: exit code 1\n" in done.stdout


def test_no_process_is_left(deployment: Deployment) -> None:
    _, _, mark = deployment
    assert list(started_with(mark).values()) == []
