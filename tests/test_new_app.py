"""The app that `python -m sim new` writes: small, clean, and it learns."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sim.cli.commands import cli
from sim.launcher import launch
from sim.new_app import write_app
from sim.run_config import RunConfigError

ROOT = Path(__file__).parents[1]


def test_it_is_short_and_clean(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["new", str(tmp_path / "Leaf_discs")])
    assert result.exit_code == 0 and "leaf_discs/task.py" in result.stdout
    app = tmp_path / "Leaf_discs"
    files = [path for path in app.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {
        *("pyproject.toml", "__init__.py", "task.py", "client_app.py", "server_app.py")
    }
    lines = [line for path in files for line in path.read_text().splitlines() if line]
    assert len(lines) <= 80 and max(map(len, lines)) <= 88
    assert not [line for line in lines if re.search(r"\{(name|project)\}", line)]
    rules = ["--isolated", "--select", "E,F,I,B,UP,D1"]
    for command in (["check", *rules], ["format", "--isolated", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "."], cwd=app, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["7up", "clients", "a b", "x" * 33])
def test_names_that_no_app_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunConfigError, match="becomes the app's name"):
        write_app(tmp_path / name)
    assert not any(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    write_app(tmp_path / "mine")
    (tmp_path / "mine" / "mine" / "task.py").write_text("edited")
    with pytest.raises(RunConfigError, match="must be an empty folder"):
        write_app(tmp_path / "mine")
    assert (tmp_path / "mine" / "mine" / "task.py").read_text() == "edited"
    (tmp_path / "file").touch()
    with pytest.raises(RunConfigError, match="must be an empty folder"):
        write_app(tmp_path / "file")


@pytest.mark.slow
@pytest.mark.simulation
def test_it_learns(tmp_path: Path) -> None:
    write_app(tmp_path / "my-app")
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.fspath(ROOT))  # as if this checkout were installed
        patch.setenv("OMP_NUM_THREADS", "1")
        launch(tmp_path / "my-app", {}, 4, echo=lines.append)
    found = re.findall(r"\{'accuracy': ([0-9.e+-]+)\}", "\n".join(lines))
    assert float(found[-1]) > 0.85, lines
