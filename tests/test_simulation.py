"""The real app on Flower's simulation engine, beside central training, by one command."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.simulation]

ROOT = Path(__file__).parents[1]
ROUNDS, STEPS, CLIENTS, SAMPLES = 3, 60, 4, 150
KEYS = {
    *("accuracy", "loss", "rounds", "clients", "samples_sent", "uplink_bytes", "downlink_bytes"),
    *("bytes_per_sample", "sections", "entropy_bytes", "seconds", "config", "seed", "versions"),
    *("failures", "envelope_bytes", "fp32_gradient_bytes", "client_memory_bytes"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulation")
    command = [
        *(sys.executable, "-m", "sim", "central", "--clients", str(CLIENTS), "--out", "results"),
        *("--config", f"num-rounds={ROUNDS}", f"server-steps={STEPS}", "eval-every=3"),
        *(f"samples-per-round={SAMPLES}", "codec=dct"),  # whose entropy is known
    ]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate()
    finally:
        process.terminate()
        process.wait()
    assert process.returncode == 0, output
    assert output.endswith(f"results: {folder / 'results'}\n")
    return folder / "results"


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "seed-0" / "result.json").read_text())
    return loaded


def test_result_has_every_key(result: dict[str, Any]) -> None:
    assert set(result) >= KEYS
    assert result["rounds"] == ROUNDS
    assert result["clients"] == CLIENTS
    assert result["failures"] == {}
    assert result["config"]["num-rounds"] == ROUNDS


def test_bytes_add_up(result: dict[str, Any]) -> None:
    assert result["samples_sent"] == ROUNDS * CLIENTS * SAMPLES
    assert sum(result["sections"].values()) == result["uplink_bytes"]
    assert result["bytes_per_sample"] == result["uplink_bytes"] / result["samples_sent"]
    coded = result["sections"]["values"] + result["sections"]["targets"]
    payloads = ROUNDS * CLIENTS
    # Zero-order entropy: contexts may beat it, side information and adaptation cost.
    assert 0.7 * result["entropy_bytes"] < coded
    assert coded < 1.05 * result["entropy_bytes"] + 2 * 64 * payloads
    assert result["bytes_per_sample"] <= 60


def test_it_learns_as_well_as_central_training(folder: Path, result: dict[str, Any]) -> None:
    (row,) = json.loads((folder / "comparison.json").read_text())["seeds"]
    assert row["federated_accuracy"] == result["accuracy"] > 0.9
    assert row["central_accuracy"] > 0.9
    assert abs(row["gap_points"]) < 5
    assert row["steps"] == ROUNDS * STEPS


def test_run_folder_is_complete(folder: Path) -> None:
    files = {file.name for file in (folder / "seed-0").iterdir()}
    expected = {"result.json", "rounds.jsonl", "accuracy_vs_uplink.png", "model.safetensors"}
    assert files == expected | {"config.json", ".run.lock"}
    lines = (folder / "seed-0" / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == list(range(ROUNDS + 1))
