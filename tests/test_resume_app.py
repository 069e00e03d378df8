"""The app goes on from its run folder: rounds, books, bank and model; never another config."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from inprocess_grid import Client, InProcessGrid
from safetensors.torch import load_file

from fl_app.client_app import app as client_app
from fl_app.config import ConfigError, RunConfig
from fl_app.server_app import app as server_app
from sim.cli.resume import keep_run, kept_run
from sim.run_config import RunConfigError
from strategies import SampleBank
from strategies.checkpoint import NAME
from strategies.errors import CheckpointError

QUICK: dict[str, bool | int | float | str] = {
    "model": "logistic",
    "num-rounds": 5,
    "server-steps": 6,
    "samples-per-round": 10,
    "learning-rate": 0.05,
    "client-key": "partition",
    "max-train-samples": 200,
    "threads": 1,
}

pytestmark = pytest.mark.usefixtures("one_thread")


class Killed(BaseException):
    """Stands for SIGKILL."""


def run_app(folder: Path, client: Client = client_app, seed: int = 0, **changes: Any) -> None:
    """Run the app as a process does: nothing is left of it but what is in the folder."""
    config = {**QUICK, "out-dir": str(folder), "state-dir": str(folder / "devices")}
    config |= {key.replace("_", "-"): value for key, value in changes.items()}
    grid = InProcessGrid([client] * 3, seed=seed)
    for context in grid.contexts.values():
        context.run_config.update(config)
    torch.manual_seed(seed)
    server_app(grid, Context(1, 1, {}, RecordDict(), config))


def killing(server_round: int, partition: int) -> Client:
    """A client that is the end of the process when it is asked in a round."""

    def answer(message: Message, context: Context) -> Message:
        config: Any = message.content["config"]
        if (config["server-round"], context.node_config["partition-id"]) == (
            server_round,
            partition,
        ):
            raise Killed
        return client_app(message, context)

    return answer


def rounds_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "rounds.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("strategy", ["replay", "streaming", "gradient", "fedavg"])
def test_a_killed_run_goes_on_and_comes_out_the_same(strategy: str, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_app(whole, strategy=strategy)
    with pytest.raises(Killed):
        run_app(cut, killing(3, 1), strategy=strategy)
    assert [r["round"] for r in rounds_of(cut)] == [0, 1, 2]
    # The kill may have come while a line was written, and before the checkpoint.
    with (cut / "rounds.jsonl").open("a") as file:
        file.write(json.dumps({**rounds_of(cut)[-1], "round": 3}) + '\n{"round": 4, "accu')
    run_app(cut, seed=1, strategy=strategy, resume=True)
    expected, found = rounds_of(whole), rounds_of(cut)
    assert [r["round"] for r in found] == [0, 1, 2, 3, 4, 5]
    for before, after in zip(expected, found, strict=True):
        assert (before["accuracy"], before["loss"]) == (after["accuracy"], after["loss"])
        assert (before["steps"], before["samples_sent"]) == (after["steps"], after["samples_sent"])
    models = [load_file(folder / "model.safetensors") for folder in (whole, cut)]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    results = [json.loads((folder / "result.json").read_text()) for folder in (whole, cut)]
    for key in ("accuracy", "loss", "samples_sent", "clients", "failures", "duplicates", "rounds"):
        assert results[0][key] == results[1][key], key
    if strategy == "replay":
        assert results[1]["samples_sent"] == 150 and results[1]["duplicates"] == 0
        with SampleBank(path=cut / "bank.sqlite", scale="unit") as bank:
            assert len(bank) == 150
    # Nothing is left to do.
    run_app(cut, seed=2, strategy=strategy, resume=True)
    assert rounds_of(cut) == found


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_anew(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run_app(tmp_path, killing(1, 0))
    (tmp_path / NAME).unlink()
    run_app(tmp_path, resume=True)
    assert [r["round"] for r in rounds_of(tmp_path)] == [0, 1, 2, 3, 4, 5]


def test_a_run_that_was_killed_in_its_first_round_tells_of_round_0_once(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run_app(tmp_path, killing(1, 0), num_rounds=2)
    run_app(tmp_path, num_rounds=2, seed=1, resume=True)
    assert [r["round"] for r in rounds_of(tmp_path)] == [0, 1, 2]


def test_a_run_that_was_killed_before_it_wrote_its_config_starts_anew(tmp_path: Path) -> None:
    run_app(tmp_path, num_rounds=1, resume=True)
    assert [r["round"] for r in rounds_of(tmp_path)] == [0, 1]


def test_another_config_is_refused_and_more_rounds_are_not(tmp_path: Path) -> None:
    run_app(tmp_path, num_rounds=2)
    with pytest.raises(ConfigError, match=r"step was .*, is 0\.25"):
        run_app(tmp_path, num_rounds=2, step=0.25, resume=True)
    with pytest.raises(ConfigError, match="num-rounds was 2, is 1"):
        run_app(tmp_path, num_rounds=1, resume=True)
    run_app(tmp_path, num_rounds=3, resume=True, seed=1, quorum=0.9)
    assert [r["round"] for r in rounds_of(tmp_path)] == [0, 1, 2, 3]
    assert json.loads((tmp_path / "config.json").read_text())["run-config"]["num-rounds"] == 3
    with pytest.raises(ConfigError, match=r"only a run of this app can be resumed"):
        run_app(tmp_path / "nothing", resume=True)
    (tmp_path / NAME).write_bytes(b"spoilt")
    with pytest.raises(CheckpointError, match="damaged"):
        run_app(tmp_path, num_rounds=3, resume=True, quorum=0.9)
    with pytest.raises(ConfigError, match="resume needs out-dir"):
        RunConfig.from_run_config({"resume": True})


def test_a_folder_in_use_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second server for the same run, or for another one there, changes nothing."""
    monkeypatch.setattr("fl_app.server_app._LOCK_SECONDS", 0.3)
    seen: list[str] = []

    def meddled(message: Message, context: Context) -> Message:
        config: Any = message.content["config"]
        if config["server-round"] == 2 and not seen:
            for resume in (True, False):
                with pytest.raises(ConfigError, match=r"is in use by process \d+: a run is"):
                    run_app(tmp_path, num_rounds=4, resume=resume)
                seen.append((tmp_path / "rounds.jsonl").read_text())
        return client_app(message, context)

    run_app(tmp_path, meddled, num_rounds=4)
    assert seen[0] == seen[1]
    assert [r["round"] for r in rounds_of(tmp_path)] == [0, 1, 2, 3, 4]
    run_app(tmp_path, num_rounds=4, resume=True)  # it is free again


def test_without_checkpoints_nothing_outlives_the_run(tmp_path: Path) -> None:
    run_app(tmp_path, num_rounds=1, checkpoint_every=0)
    names = {file.name for file in tmp_path.iterdir()}
    assert not names & {NAME, "bank.sqlite", "devices"}


def test_a_bank_of_its_own_serves_a_second_run(tmp_path: Path) -> None:
    """Devices send what the bank lacks, and no more; another model trains on all of it."""
    options = {"bank": str(tmp_path / "bank"), "state_dir": str(tmp_path / "devices")}
    run_app(tmp_path / "first", num_rounds=2, **options)
    run_app(tmp_path / "second", num_rounds=6, seed=1, checkpoint_every=0, **options)
    sent = [
        json.loads((tmp_path / name / "result.json").read_text())["samples_sent"]
        for name in ("first", "second")
    ]
    assert sent == [60, 140]
    with SampleBank(path=tmp_path / "bank", scale="unit") as bank:
        assert len(bank) == 200


def test_a_run_ends_at_its_target(tmp_path: Path) -> None:
    run_app(tmp_path, num_rounds=9, target_accuracy=0.15)
    accuracies = [r["accuracy"] for r in rounds_of(tmp_path)]
    assert len(accuracies) < 10 and accuracies[-1] >= 0.15
    assert all(accuracy < 0.15 for accuracy in accuracies[1:-1])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["rounds"] == len(accuracies) - 1


# The command line


def test_the_launcher_keeps_config_and_clients(tmp_path: Path) -> None:
    config = RunConfig(num_rounds=4, seed=2, data_dir=str(tmp_path)).to_run_config()
    keep_run(tmp_path, config, clients=7)
    known, clients = kept_run(tmp_path, {})
    assert (known, clients) == (config, 7)
    known, _ = kept_run(tmp_path, {"num-rounds": 6})
    assert known == {**config, "num-rounds": 6}
    with pytest.raises(RunConfigError, match="seed was 2, is 3"):
        kept_run(tmp_path, {"seed": 3})
    with pytest.raises(RunConfigError, match=r"--resume .*: cannot read .*config\.json"):
        kept_run(tmp_path / "other", {})
