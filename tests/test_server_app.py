"""Tests of fl_app.server_app: whole runs of the app on a grid in this process."""

import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from inprocess_grid import Client, InProcessGrid
from PIL import Image

from fl_app.client_app import app as client_app
from fl_app.client_app import node_source
from fl_app.config import ConfigError, RunConfig
from fl_app.server_app import app as server_app
from fl_app.server_app import set_threads
from fl_app.training import round_learning_rates
from strategies.errors import RunFailed
from strategies.server_model import DivergedError

ROOT = Path(__file__).parents[1]
RESULT_KEYS = {
    *("accuracy", "loss", "rounds", "clients", "samples_sent", "uplink_bytes", "downlink_bytes"),
    *(
        "envelope_bytes",
        "bytes_per_sample",
        "sections",
        "entropy_bytes",
        "fp32_gradient_bytes",
        "client_memory_bytes",
        "seconds",
        "round_seconds",
    ),
    *("config", "seed", "versions", "failures", "variance_kept", "skipped", "clipped"),
    *("codec_choices", "downlink_sections", "nodes"),
    *("duplicates", "late"),
}
QUICK: dict[str, int | float | str] = {
    "model": "logistic",
    "num-rounds": 2,
    "server-steps": 20,
    "learning-rate": 0.05,
}


def make_folder(root: Path, names: list[str], number: int = 6) -> None:
    generator = np.random.default_rng(0)
    for name in names:
        (root / name).mkdir(parents=True)
        for index in range(number):
            pixels = generator.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")


def run_app(
    out_dir: Path, client: Client = client_app, clients: int = 3, **changes: int | float | str
) -> None:
    config: dict[str, bool | int | float | str] = {**QUICK, "out-dir": str(out_dir)}
    config |= {key.replace("_", "-"): value for key, value in changes.items()}
    grid = InProcessGrid([client] * clients)
    for context in grid.contexts.values():
        context.run_config.update(config)
    server_app(grid, Context(1, 1, {}, RecordDict(), config))


def test_replay_run_leaves_a_complete_folder(tmp_path: Path) -> None:
    run_app(tmp_path, samples_per_round=40)
    result = json.loads((tmp_path / "result.json").read_text())
    assert set(result) == RESULT_KEYS
    assert result["accuracy"] > 0.3
    assert (result["rounds"], result["clients"], result["samples_sent"]) == (2, 3, 240)
    assert sum(result["sections"].values()) == result["uplink_bytes"]
    assert sum(result["downlink_sections"].values()) == result["downlink_bytes"]
    for key in ("uplink_bytes", "downlink_bytes"):
        assert sum(node[key] for node in result["nodes"].values()) == result[key]
    assert [node["failures"] for node in result["nodes"].values()] == [{}] * 3
    assert result["bytes_per_sample"] == result["uplink_bytes"] / 240
    assert result["fp32_gradient_bytes"] == 4 * 7850 * 3 * 40
    assert result["config"]["samples-per-round"] == 40
    assert result["failures"] == {}
    choices = result["codec_choices"].values()
    assert len(choices) == 3
    for choice in choices:
        tried = {each["codec"]: each["bytes_per_sample"] for each in choice["candidates"]}
        assert choice["codec"] in tried and tried.keys() >= {"dct", "webp", "avif"}
    rounds = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert [r["round"] for r in rounds] == [0, 1, 2]
    assert rounds[-1]["uplink_bytes"] == result["uplink_bytes"] > rounds[1]["uplink_bytes"] > 0
    for direction, size in result["envelope_bytes"].items():
        key = f"{direction}_envelope_bytes"
        assert rounds[-1][key] == size > rounds[1][key] > rounds[0][key] == 0
    for name in ("accuracy_vs_uplink.png", "model.safetensors"):
        assert (tmp_path / name).stat().st_size > 0


def test_runs_are_reproducible(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run_app(tmp_path / name, samples_per_round=20)
    first, again = ((tmp_path / name / "rounds.jsonl").read_text() for name in ("a", "b"))
    assert first == again


def test_streaming_run_with_scores_and_refinement(tmp_path: Path) -> None:
    run_app(
        tmp_path,
        strategy="streaming",
        importance="loss",
        keep_rate=0.5,
        refinement="qsgd",
        schedule="constant",
    )
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["sections"]["refinement"] > 0
    assert result["failures"] == {}
    assert 0 < result["samples_sent"] < 2 * 3 * 32


def test_rounds_between_evaluations_have_no_accuracy(tmp_path: Path) -> None:
    run_app(tmp_path, num_rounds=3, eval_every=2, samples_per_round=10)
    rounds = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert [r["accuracy"] is None for r in rounds] == [False, True, False, False]


def test_bad_config_ends_the_run_before_any_client_is_asked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"learning-rate = '0\.1' must be a number"):
        run_app(tmp_path / "run", learning_rate="0.1")
    assert not (tmp_path / "run").exists()


def test_run_without_a_usable_sample_fails_with_the_cause(tmp_path: Path) -> None:
    def without_data(msg: Message, context: Context) -> Message:
        raise FileNotFoundError("no data here")

    with pytest.raises(RunFailed, match=r"no reply could be used: .*, no data here"):
        run_app(tmp_path, without_data)
    names = {file.name for file in tmp_path.iterdir()}
    assert "rounds.jsonl" in names
    assert not names & {"result.json", "model.safetensors"}  # no untrained model


def test_gradients_are_counted_by_the_nodes_of_each_round(tmp_path: Path) -> None:
    run_app(tmp_path, num_rounds=4, samples_per_round=0)  # everything is sent in the first round
    rounds = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert [r["steps"] for r in rounds] == [0, 20, 40, 60, 80]
    assert [r["fp32_gradient_bytes"] for r in rounds] == [0, *[4 * 7850 * 3 * 20] * 4]


def test_a_run_is_logged_by_a_line_a_round_and_a_summary_of_five(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "flwr"):
        run_app(tmp_path, samples_per_round=40)
    lines = [record.getMessage() for record in caplog.records]
    choices = [line for line in lines if "codec auto is" in line]  # once a node
    assert len(choices) == 3
    lines = [line for line in lines if line not in choices]
    assert lines[0] == lines[-1] == f"run folder: {tmp_path}"
    assert re.fullmatch(r"round 0/2: accuracy [\d.]+ %, up 0 B, down 0 B", lines[1])
    for number, left in ((1, r", [\d.]+ s left"), (2, "")):
        line = rf"round {number}/2: accuracy .* %, up .*B, down .*B, .*x fewer up.*, [\d.]+ s{left}"
        assert re.fullmatch(line, lines[1 + number])
    starts = [
        "samples: 240 sent, 0 skipped, ",
        "content: ",
        "accuracy: ",
        "seconds: ",
        "run folder",
    ]
    assert len(lines) == 9
    for line, start in zip(lines[4:], starts, strict=True):
        assert line.startswith(start)


def test_a_run_without_test_images_is_not_evaluated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_folder(tmp_path / "data" / "train", ["cat", "dog"])
    run_app(tmp_path / "run", dataset="imagefolder", image_size=8, data_dir=str(tmp_path / "data"))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["accuracy"], result["loss"]) == (None, None)
    assert result["samples_sent"] == 12
    assert "accuracy: not evaluated after 40 steps; replies failed: none" in caplog.text
    for name in ("accuracy_vs_uplink.png", "model.safetensors"):
        assert (tmp_path / "run" / name).stat().st_size > 0


def test_a_single_class_is_refused(tmp_path: Path) -> None:
    make_folder(tmp_path / "data" / "train", ["cat"])
    make_folder(tmp_path / "data" / "test", ["cat"])
    with pytest.raises(ConfigError, match="has 1 class; a model needs at least 2"):
        run_app(tmp_path / "run", dataset="imagefolder", data_dir=str(tmp_path / "data"))
    assert not (tmp_path / "run").exists()


def test_clients_whose_dirichlet_share_is_empty_do_no_harm(tmp_path: Path) -> None:
    run_app(tmp_path, clients=8, partition="dirichlet", dirichlet_alpha=0.01, max_train_samples=40)
    config = RunConfig(partition="dirichlet", dirichlet_alpha=0.01, max_train_samples=40)
    shares = [len(node_source(config, "", number, 8)) for number in range(8)]
    assert 0 in shares
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["samples_sent"] == sum(shares) == 40
    assert result["failures"] == {}


@pytest.mark.parametrize("strategy", ["replay", "streaming", "fedavg"])
def test_a_run_that_diverges_fails(strategy: str, tmp_path: Path) -> None:
    with pytest.raises((RunFailed, DivergedError), match=r"diverged|holds NaN"):
        run_app(tmp_path, strategy=strategy, learning_rate=1e30, schedule="constant")
    assert not (tmp_path / "result.json").exists()


def test_small_models_get_one_thread_unless_told() -> None:
    before = torch.get_num_threads()
    set_threads(0, torch.nn.Linear(2, 2))
    assert torch.get_num_threads() == 1
    set_threads(2, torch.nn.Linear(2, 2))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("changes", "sections"),
    [
        ({"strategy": "gradient", "compressor": "top-k"}, {"gradient", "message"}),
        ({"strategy": "gradient", "model": "small-resnet"}, {"gradient", "buffers", "message"}),
        ({"strategy": "fedavg", "local_steps": 3}, {"arrays", "message"}),
        (
            {"strategy": "fedavg", "local_steps": 3, "compressor": "qsgd", "compressor_bits": 7},
            {"delta", "message"},
        ),
        (
            {
                "strategy": "fedavg",
                "local_steps": 3,
                "compressor": "top-k",
                "compressor_value_bits": 2,
                "downlink": "top-k",
                "outer_momentum": 0.5,
            },
            {"delta", "message"},
        ),
    ],
    ids=["top-k gradients", "fp32 gradients", "FedAvg", "FedAvg, int8", "top-k both ways"],
)
def test_baselines_run_on_the_same_books(
    changes: dict[str, int | str], sections: set[str], tmp_path: Path
) -> None:
    run_app(tmp_path, **changes)
    result = json.loads((tmp_path / "result.json").read_text())
    assert set(result) == RESULT_KEYS
    assert set(result["sections"]) == sections
    assert result["failures"] == {}
    assert result["samples_sent"] == 0
    rounds = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert rounds[-1]["steps"] == (6 if changes["strategy"] == "fedavg" else 2)
    assert rounds[-1]["accuracy"] > 0.05


def test_local_learning_rates_follow_the_schedule_of_all_steps() -> None:
    config = RunConfig(strategy="fedavg", num_rounds=4, local_steps=5, learning_rate=0.3)
    rates = round_learning_rates(config)
    assert len(rates) == 4
    assert max(rates) <= 0.3 + 1e-9 and rates[1] > rates[0] and rates[3] < rates[1]
    assert round_learning_rates(replace(config, schedule="constant")) == [0.3] * 4


@pytest.mark.parametrize("name", ["paper", "practical", "resnet9"])
def test_presets_run(name: str, tmp_path: Path) -> None:
    preset = tomllib.loads((ROOT / "fl_app" / "presets" / f"{name}.toml").read_text())
    values = {key.replace("-", "_"): value for key, value in preset.items()}
    run_app(tmp_path, **{**values, "model": "logistic", "num_rounds": 2})
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["failures"] == {}
    assert ("weights" in result["sections"]) == (name == "paper")
    kept = preset.keys() - {"num-rounds", "model"}
    assert {key: result["config"][key] for key in kept} == {key: preset[key] for key in kept}
