"""What pyproject.toml promises about the app."""

import tomllib
from pathlib import Path
from typing import Any

from fl_app.config import RunConfig, described_keys
from sim.pyproject import PYPROJECT, with_section

TEXT = PYPROJECT.read_text(encoding="utf-8")
FLOWER: dict[str, Any] = tomllib.loads(TEXT)["tool"]["flwr"]


def test_run_config_is_generated_from_the_options() -> None:
    assert Path(__file__).parents[1] / "pyproject.toml" == PYPROJECT
    assert with_section(TEXT) == TEXT


def test_the_section_is_written_anew_whatever_stood_there() -> None:
    head, section = TEXT.split("[tool.flwr.app.config]\n")
    tail = section[section.index("\n[tool.ruff]") :]
    for stale in ("", 'strategy = "sgd"\n\n# Old\nrounds = 3\n'):
        assert with_section(f"{head}[tool.flwr.app.config]\n{stale}{tail}") == TEXT


def test_every_key_says_what_it_means_and_what_is_legal() -> None:
    lines = {line.partition(" =")[0]: line for line in TEXT.splitlines()}
    for described in described_keys():
        assert described.doc and described.legal
        _, _, comment = lines[described.key].partition(" # ")
        assert comment == f"{described.doc}; {described.legal}"


def test_run_config_is_the_one_of_the_app() -> None:
    declared, known = FLOWER["app"]["config"], RunConfig().to_run_config()
    assert declared == known
    assert {k: type(v) for k, v in declared.items()} == {k: type(v) for k, v in known.items()}


def test_no_federations() -> None:
    # flwr run would migrate them into the user's configuration and rewrite this file.
    assert "federations" not in FLOWER
