"""What pyproject.toml promises about the app."""

import tomllib
from pathlib import Path
from typing import Any

from fl_app.config import RunConfig

ROOT = Path(__file__).parents[1]
FLOWER: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]


def test_run_config_is_the_one_of_the_app() -> None:
    declared, known = FLOWER["app"]["config"], RunConfig().to_run_config()
    assert declared == known
    assert {k: type(v) for k, v in declared.items()} == {k: type(v) for k, v in known.items()}


def test_no_federations() -> None:
    # flwr run would migrate them into the user's configuration and rewrite this file.
    assert "federations" not in FLOWER
