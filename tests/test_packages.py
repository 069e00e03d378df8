"""What each role needs: its imports work with its packages alone, and what is missing is named."""

import subprocess
import sys
import tomllib
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest

from codec.errors import CodecError
from codec.packages import ORIGINS, MissingPackage, needed_packages, require
from sim.launcher import launch

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]

# Modules that a role's extra, with those it contains, does not bring.
BEYOND_SIM = ["flwr_datasets", "datasets", "imagecodecs", "numba", "pytest", "hypothesis"]
BEYOND_APP = ["ray", "mlxtend", "scipy", "sklearn", "pandas", "pyarrow", *BEYOND_SIM]
BEYOND_STRATEGIES = ["torchvision", "matplotlib", *BEYOND_APP]
BEYOND_EDGE = ["torch", "safetensors", *BEYOND_STRATEGIES]


def python(code: str, without: Iterable[str]) -> "subprocess.CompletedProcess[str]":
    """Run code in which some modules are not installed, as far as one can tell."""
    blocked = f"import sys; sys.modules.update(dict.fromkeys({list(without)!r})); "
    command = [sys.executable, "-c", blocked + code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("code", "without"),
    [
        ("import codec, codec.messages, clients, clients.baselines", ["PIL", *BEYOND_EDGE]),
        ("import fl_app.client_app", BEYOND_EDGE),
        ("import strategies, strategies.baselines, clients.baselines", BEYOND_STRATEGIES),
        ("import fl_app.server_app, fl_app.client_app, fl_app.training, fl_app.models", BEYOND_APP),
        ("import sim.__main__, sim.in_process, sim.superlink, sim.tables", BEYOND_SIM),
    ],
)
def test_a_role_imports_with_its_packages_alone(code: str, without: list[str]) -> None:
    done = python(code, without)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("code", "module", "extra"),
    [
        ("import codec", "constriction", "edge"),
        ("import fl_app.client_app", "PIL", "edge"),
        ("import strategies", "torch", "strategies"),
        ("import fl_app.server_app", "torch", "strategies"),
        ("from fl_app.models import build_model; build_model('resnet18', (3, 32, 32), 10)",
         "torchvision", "app"),
    ],
)  # fmt: skip
def test_a_missing_package_is_named_with_its_extra(code: str, module: str, extra: str) -> None:
    error = python(code, [module]).stderr.splitlines()[-1]
    assert error.startswith(f"codec.packages.MissingPackage: the package {module} is not installed")
    assert f"pip install '{ORIGINS[module].distribution}'" in error
    assert f"pip install '.[{extra}]'" in error


def test_require_names_the_first_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    require("PIL", "torch")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingPackage, match=r"package torch is not .*'\.\[strategies\]'") as found:
        require("PIL", "torch")
    assert isinstance(found.value, CodecError) and isinstance(found.value, ImportError)


def test_without_ray_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackage, match=r"'flwr\[simulation\]'.*'\.\[sim\]'"):
        launch(ROOT, {}, 2)


def test_other_missing_modules_are_told_as_they_are() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_package"), needed_packages():
        import no_such_package  # type: ignore[import-not-found]  # noqa: F401


def test_every_extra_holds_the_one_before_it_and_what_is_said_to_be_in_it() -> None:
    roles = ["edge", "strategies", "app", "sim", "dev"]
    for inner, outer in pairwise(roles):
        assert EXTRAS[outer][0] == f"{PROJECT['name']}[{inner}]"
    own = EXTRAS | {"edge": [*PROJECT["dependencies"], *EXTRAS["edge"]]}
    for origin in ORIGINS.values():
        assert any(line.startswith(origin.distribution + ">=") for line in own[origin.extra])
