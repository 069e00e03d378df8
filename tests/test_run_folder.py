"""Tests of fl_app.run_folder."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from fl_app.run_folder import (
    RoundRecord,
    RunFolder,
    fp32_gradient_bytes,
    read_config,
    run_folder_path,
    versions,
    write_config,
)


def record(number: int, accuracy: float | None = 0.5) -> RoundRecord:
    return RoundRecord(
        round=number,
        accuracy=accuracy,
        loss=1.5,
        steps=100 * number,
        samples_sent=1000 * number,
        uplink_bytes=40_000 * number,
        downlink_bytes=500 * number,
        uplink_envelope_bytes=7_000 * number,
        downlink_envelope_bytes=9_000 * number,
        raw_pixel_bytes=784_000 * number,
        fp32_gradient_bytes=fp32_gradient_bytes(10_000, 10 * 100 * number),
    )


def test_fp32_gradient_bytes_is_one_gradient_per_client_and_step() -> None:
    assert fp32_gradient_bytes(parameters=7, node_steps=3 * 5) == 4 * 7 * 3 * 5


def test_round_line_tells_accuracy_bytes_and_the_factor() -> None:
    line = record(2, 0.96125).line(8)
    assert line == (
        "round 2/8: accuracy 96.12 %, up 80.0 kB, down 1.0 kB, 1,000x fewer up than fp32 gradients"
    )
    assert record(0, 0.1).line(8) == "round 0/8: accuracy 10.00 %, up 0 B, down 0 B"
    assert "accuracy not evaluated" in record(1, None).line(8)


def test_traffic_tells_content_and_envelope_of_both_directions() -> None:
    line = "content: 80.0 kB up, 1.0 kB down; envelope: 14.0 kB up, 18.0 kB down"
    assert record(2).traffic() == line


def test_default_path_names_time_dataset_and_strategy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    now = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
    path = run_folder_path("", now, "mnist5k", "replay")
    assert path == tmp_path / "runs" / "20250102-030405-mnist5k-replay"
    assert run_folder_path("here", now, "mnist5k", "replay") == tmp_path / "here"


def test_rounds_are_readable_as_they_happen(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a" / "run")
    for number in range(3):
        folder.append_round(record(number, None if number == 1 else 0.5))
        lines = (folder.path / "rounds.jsonl").read_text().splitlines()
        assert [json.loads(line)["round"] for line in lines] == list(range(number + 1))
    assert json.loads(lines[1])["accuracy"] is None
    folder.close()


def test_result_model_and_plot_are_written(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for number in range(5):
        folder.append_round(record(number, 0.2 * number))
    model = torch.nn.Linear(3, 2)
    folder.write_result({"accuracy": 0.8, "versions": versions()})
    folder.write_model(model, {"model": "linear"})
    folder.write_plot("mnist5k, replay, 10 clients")
    folder.close()
    assert json.loads((tmp_path / "result.json").read_text())["accuracy"] == 0.8
    path = tmp_path / "model.safetensors"
    assert torch.equal(load_file(path)["weight"], model.weight)
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["run-config"]) == {"model": "linear"}
    with Image.open(tmp_path / "accuracy_vs_uplink.png") as image:
        assert image.size == (960, 600)


def test_plot_of_a_run_without_uplink_is_drawn_all_the_same(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.append_round(record(0))
    folder.write_plot("nothing sent")
    folder.close()
    assert (tmp_path / "accuracy_vs_uplink.png").stat().st_size > 0


def test_a_kill_while_the_config_is_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_config(tmp_path, {"num-rounds": 3})

    def killed(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_config(tmp_path, {"num-rounds": 4})
    assert read_config(tmp_path)["run-config"] == {"num-rounds": 3}


def test_result_with_nan_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.write_result({"loss": float("nan")})
    folder.close()
