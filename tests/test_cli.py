"""The command line: flags of several values, exit codes, and the help of a run."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from fl_app.config import GROUPS, RunConfig, described_keys
from sim.__main__ import main
from sim.cli import commands
from sim.cli.commands import cli
from sim.cli.options import repeat_flags
from sim.launcher import RunError
from sim.run_config import RunConfigError

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Undo what `main` does to the signals of this process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Any, ...]]:
    """Arguments of the launches, none of which takes place; the working directory is empty."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(commands, "launch", lambda *arguments: calls.append(arguments))
    monkeypatch.chdir(tmp_path)
    return calls


@pytest.mark.parametrize(
    ("arguments", "repeated"),
    [
        ("run", "run"),
        ("run --config a=1", "run --config a=1"),
        ("run --config a=1 b=-2 --out x", "run --config a=1 --config b=-2 --out x"),
        ("run --config a=1 --config b=2 c=3", "run --config a=1 --config b=2 --config c=3"),
        ("run --config=a=1 --out x", "run --config=a=1 --out x"),
        ("compare --jobs 2 --only A B --report", "compare --jobs 2 --only A --only B --report"),
        (
            "importance --importances loss random --seeds 2",
            "importance --importances loss --importances random --seeds 2",
        ),
        ("run --config a=1 b=2 -- --config c d", "run --config a=1 --config b=2 -- --config c d"),
    ],
)
def test_flags_are_repeated_before_each_value(arguments: str, repeated: str) -> None:
    assert repeat_flags(arguments.split()) == repeated.split()


def test_a_value_may_have_spaces() -> None:
    repeated = repeat_flags(["--only", "ours, replay", "FedAvg"])
    assert repeated == ["--only", "ours, replay", "--only", "FedAvg"]


@pytest.mark.parametrize("arguments", [["--config"], ["--config", "--clients", "3"]])
def test_a_flag_without_value_is_refused(arguments: list[str]) -> None:
    with pytest.raises(RunConfigError, match="--config needs at least one value"):
        repeat_flags(["run", *arguments])


def test_options_arrive(launched: list[tuple[Any, ...]], tmp_path: Path) -> None:
    (tmp_path / "more.toml").write_text("num-rounds = 3\nstep = 0.25\n")
    line = "run --config num-rounds=2 seed=4 --clients 7 --out o --run-config more.toml"
    assert main([*line.split(), "--config", "model=resnet18"]) == 0
    [(app, config, clients, _)] = launched
    assert (app, clients) == (ROOT, 7)
    assert config == {
        "num-rounds": 2, "step": 0.25, "seed": 4, "model": "resnet18",
        "data-dir": str(tmp_path / "data"), "out-dir": str(tmp_path / "o"),
    }  # fmt: skip


def test_a_run_folder_has_the_name_of_time_data_and_strategy(
    launched: list[tuple[Any, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--config", "strategy=streaming"]) == 0
    [folder] = (tmp_path / "runs").iterdir()
    assert folder.name.endswith("-mnist5k-streaming")
    assert capsys.readouterr().out == f"run folder: {folder}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "Missing command."),
        ("walk", "No such command 'walk'."),
        ("run extra", "Got unexpected extra argument (extra)"),
        ("run --cleints 3", "No such option '--cleints'."),
        ("run --clients 0", "Invalid value for '--clients': 0 is not in the range x>=1."),
        ("run --config", "--config needs at least one value"),
        ("run --config seed", "'seed' must have the form KEY=VALUE"),
        ("run --config sede=1", "the run config has no key 'sede'; did you mean 'seed'?"),
        ("compare", "Missing option '--preset'. Choose from: smoke, "),
        ("compare --preset x", "Invalid value for '--preset': 'x' is not one of 'smoke', "),
        ("importance --mode x", "Invalid value for '--mode': 'x' is not one of 'streaming', "),
        (
            "importance --mode replay --importances losss",
            "--importances: 'losss' is no importance; did you mean 'loss'?",
        ),
        (
            "scout --only randon",
            "--only: 'randon' is not compared here; did you mean 'random'?",
        ),
    ],
)
def test_bad_arguments_are_told_in_one_line(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments.split()) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"error: {message}")
    assert output.err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "exit_code", "message"),
    [
        (RunError("no clients"), 1, "error: no clients\n"),
        (RunConfigError("seed = -1"), 2, "error: seed = -1\n"),
        (KeyboardInterrupt(), 130, "interrupted; everything that was started is stopped\n"),
    ],
)
def test_the_end_of_a_run_is_the_exit_code(
    error: BaseException,
    exit_code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def launch(*_: object) -> None:
        raise error

    monkeypatch.setattr(commands, "launch", launch)
    assert main(["run", "--out", str(tmp_path / "out")]) == exit_code
    assert capsys.readouterr().err == message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "command", [command.name or command.callback.__name__ for command in cli.registered_commands]
)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == main([command, "-h"]) == 0
    assert f"Usage: python -m sim {command}" in click.unstyle(capsys.readouterr().out)


def test_help_of_a_run_lists_examples_and_every_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["run", "--help"]) == 0
    text = click.unstyle(capsys.readouterr().out)
    assert text.count("  python -m sim run") >= 3
    rows = {row[0]: row for line in text.splitlines() if (row := line.split())}
    for key, default in RunConfig().to_run_config().items():
        shown = str(default).lower() if isinstance(default, bool) else str(default)
        assert rows[key][1] == (shown or '""')
    assert "  one of sgd, adam, adamw" in text
    assert all(title in text for title in GROUPS)


def test_the_table_of_keys_is_whole_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["run", "--help"]) == 0
    text = click.unstyle(capsys.readouterr().out)
    assert "…" not in text
    firsts = {line.split()[0] for line in text.splitlines() if line.strip()}
    assert firsts >= set(RunConfig().to_run_config())


def test_keys_are_described_as_they_are_declared() -> None:
    described = {d.key: d for d in described_keys()}
    assert {key: d.default for key, d in described.items()} == RunConfig().to_run_config()
    assert {d.group for d in described.values()} == set(GROUPS)
    seed, vote = described["seed"], described["majority-vote"]
    assert (seed.legal, seed.doc) == ("in [0, 4294967295]", "seed of everything random")
    assert vote.legal == "true or false"


def test_help_needs_no_torch() -> None:
    code = "import sys; from sim.__main__ import main; main(['run', '-h']); "
    found = "print(sorted({'torch', 'matplotlib'} & set(sys.modules)))"
    command = [sys.executable, "-c", code + found]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert output.endswith("\n[]\n")


def test_start_up_imports_nothing_heavy() -> None:
    code = "import sys, sim.__main__; print({'torch', 'flwr', 'numpy'} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert output == "set()\n"


def test_a_deployment_needs_as_many_nodes_as_it_waits_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = f"deploy --nodes 2 --out {tmp_path / 'o'} --config min-available-nodes=3"
    assert main(line.split()) == 2
    assert "must be at most --nodes 2, or no round ever starts" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
