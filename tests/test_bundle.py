"""An app's bundle is the same whatever else lies in its folder, and made without a look at it."""

from pathlib import Path

from flwr.cli.build import build_fab_from_disk

from sim.bundle import staged

ROOT = Path(__file__).parents[1]


def test_the_bundle_is_that_of_the_apps_own_files(tmp_path: Path) -> None:
    copy = staged(ROOT, tmp_path)
    assert copy == tmp_path / ROOT.name
    assert build_fab_from_disk(copy) == build_fab_from_disk(ROOT)
    tops = {path.name for path in copy.iterdir()}
    assert {"codec", "clients", "strategies", "fl_app", "pyproject.toml", "LICENSE"} <= tops
    assert not {"tests", "sim", "docs", "runs", "data", ".venv", ".git"} & tops


def test_an_app_that_does_not_tell_is_bundled_where_it_is(tmp_path: Path) -> None:
    project = tmp_path / "pyproject.toml"
    for include in ("", 'fab-include = ["**/*.py"]'):
        project.write_text(f"[tool.flwr.app]\npublisher = 'x'\n{include}\n")
        assert staged(tmp_path, tmp_path / "copy") == tmp_path
