"""Typed run config from the command line."""

import tomllib
from pathlib import Path

import pytest
import tomli_w

from sim.run_config import RunConfigError, make_run_config, read_defaults

APP = """
[tool.flwr.app.config]
model = "auto"
rounds = 8
rate = 0.5
flag = false
data-dir = ""
out-dir = ""
optimizer.momentum = 0.9
"""


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pyproject.toml").write_text(APP)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_values_take_the_type_of_the_default(app: Path) -> None:
    pairs = ["model=18", "rounds=3", "rate=1", "flag=true", "optimizer.momentum=0"]
    config = make_run_config(app, pairs)
    assert config == {
        "model": "18",
        "rounds": 3,
        "rate": 1.0,
        "flag": True,
        "optimizer.momentum": 0.0,
        "data-dir": str(app / "data"),
    }
    assert type(config["rate"]) is float


def test_a_number_of_bytes_may_be_text(app: Path) -> None:
    """Whether it is legal for a key is the app's affair."""
    assert make_run_config(app, ["rounds=2MB"])["rounds"] == "2MB"
    assert make_run_config(app, ["rounds=0.3 kB"])["rounds"] == "0.3 kB"
    with pytest.raises(RunConfigError, match="rounds = '2Mb' must be a whole number"):
        make_run_config(app, ["rounds=2Mb"])


def test_pairs_go_before_the_file(app: Path) -> None:
    (app / "run.toml").write_text("rounds = 2\nrate = 0.25\noptimizer = {momentum = 0.1}\n")
    config = make_run_config(app, ["rounds=3"], app / "run.toml")
    assert (config["rounds"], config["rate"], config["optimizer.momentum"]) == (3, 0.25, 0.1)


def test_paths_become_absolute(app: Path) -> None:
    config = make_run_config(app, ["data-dir=d", "out-dir=~/o"])
    assert config == {"data-dir": str(app / "d"), "out-dir": str(Path.home() / "o")}
    assert "out-dir" not in make_run_config(app)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("rounds", "'rounds' must have the form KEY=VALUE"),
        ("rounds=2.5", "rounds = '2.5' must be a whole number"),
        ("rate=high", "rate = 'high' must be a number"),
        ("flag=1", "flag = '1' must be true or false"),
        ("round=2", "the run config has no key 'round'; did you mean 'rounds'?"),
        ("xyz=2", "the run config has no key 'xyz'; known keys: data-dir, flag, model"),
    ],
)
def test_errors_name_key_value_and_what_is_legal(app: Path, pair: str, message: str) -> None:
    with pytest.raises(RunConfigError) as caught:
        make_run_config(app, [pair])
    assert str(caught.value).startswith(message)


def test_unreadable_file(app: Path) -> None:
    (app / "bad.toml").write_text("rounds 2")
    with pytest.raises(RunConfigError, match="cannot read"):
        make_run_config(app, file=app / "bad.toml")
    with pytest.raises(RunConfigError, match="cannot read"):
        make_run_config(app, file=app / "absent.toml")


def test_toml_round_trip() -> None:
    values = {"a": 'quote " and \\ and é and \n', "b.c": True, "d": 1e-7, "e": 3, "f": 1e22}
    assert tomllib.loads(tomli_w.dumps(values)) == values


def test_an_app_without_run_config(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert read_defaults(tmp_path) == {}
