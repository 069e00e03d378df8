"""`sim run` on Flower's engine, killed with all its processes, goes on by `--resume`."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sim_process import start_run

from codec.learning.state import model_state
from fl_app.config import RunConfig
from sim.in_process import train_in_process

pytestmark = [pytest.mark.slow, pytest.mark.simulation]

CLIENTS, ROUNDS = 3, 5
CONFIG = {
    "num-rounds": ROUNDS,
    "server-steps": 20,
    "samples-per-round": 20,
    "max-train-samples": 300,
    "model": "logistic",
    "threads": 1,
}


def _rounds(folder: Path) -> list[int]:
    path = folder / "rounds.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["round"] for line in lines]


def test_killed_and_resumed_it_is_the_run_that_nobody_killed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    pairs = [f"{key}={value}" for key, value in CONFIG.items()]
    first = start_run(
        "--config", *pairs, "--clients", str(CLIENTS), "--out", str(folder), cwd=tmp_path
    )
    until = time.monotonic() + 240
    while len(_rounds(folder)) < 3:
        assert first.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert max(_rounds(folder)) < ROUNDS
    second = start_run("--resume", str(folder), cwd=tmp_path)
    output, _ = second.communicate()
    assert second.returncode == 0, output
    assert _rounds(folder) == [*range(ROUNDS + 1)]
    result = json.loads((folder / "result.json").read_text())
    assert (result["samples_sent"], result["duplicates"]) == (CLIENTS * ROUNDS * 20, 0)
    assert result["clients"] == CLIENTS and result["failures"] == {}
    expected, _ = train_in_process(RunConfig.from_run_config(CONFIG), CLIENTS)
    model = load_file(folder / "model.safetensors")
    for name, value in model_state(expected.model).items():
        assert torch.equal(value, model[name]), name
