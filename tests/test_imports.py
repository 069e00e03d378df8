"""The import direction codec <- {clients, strategies} <- fl_app <- sim, read from the sources."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Package -> packages of this repository that it may import, beside itself.
ALLOWED = {
    "codec": set(),
    "clients": {"codec"},
    "strategies": {"codec"},
    "fl_app": {"codec", "clients", "strategies"},
    "sim": {"codec", "clients", "strategies", "fl_app"},
}
TORCH = {"torch", "torchvision"}


@cache
def _parsed(source: Path) -> ast.Module:
    return ast.parse(source.read_text(encoding="utf-8"))


def _sources(package: str) -> list[Path]:
    sources = sorted((ROOT / package).rglob("*.py"))
    assert sources, f"no package {package}"
    return sources


def _imports(tree: ast.AST, *, at_import_time: bool = False) -> Iterator[str]:
    """Yield dotted names, ``from a import b`` as ``a.b``; optionally those that importing runs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not (at_import_time and _runs_later(node)):
            yield from _imports(node, at_import_time=at_import_time)


def _runs_later(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.dump(node.test)
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def _top(name: str) -> str:
    return name.split(".")[0]


def _file(name: str) -> Path | None:
    """Return the source of a module of this repository, the name's tail an attribute or not."""
    parts = name.split(".")
    for end in (len(parts), len(parts) - 1):
        path = ROOT.joinpath(*parts[:end])
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if end and file.is_file():
                return file
    return None


def _import_closure(*names: str) -> set[Path]:
    """Return the files of this repository that importing some modules runs."""
    files: set[Path] = set()
    pending = list(names)
    while pending:
        name = pending.pop()
        # Importing a.b runs a, too.
        parents = [".".join(name.split(".")[:n]) for n in range(1, name.count(".") + 2)]
        for file in filter(None, map(_file, parents)):
            if file not in files:
                files.add(file)
                pending += _imports(_parsed(file), at_import_time=True)
    return files


@pytest.mark.parametrize("package", ALLOWED)
def test_direction(package: str) -> None:
    forbidden = set(ALLOWED) - ALLOWED[package] - {package} | {"tests"}
    for source in _sources(package):
        found = {_top(name) for name in _imports(_parsed(source))}
        assert not found & forbidden, source


def test_codec_never_imports_flower() -> None:
    for source in _sources("codec"):
        assert "flwr" not in {_top(name) for name in _imports(_parsed(source))}, source


def test_codec_needs_numpy_and_constriction_only() -> None:
    for source in _sources("codec"):
        names = _imports(_parsed(source), at_import_time=True)
        outside = {_top(name) for name in names} - set(sys.stdlib_module_names)
        known = {"codec", "numpy", "constriction"}
        if source.name == "compiled.py":  # which is imported where Numba is there
            known.add("numba")
        assert outside <= known, source


@pytest.mark.parametrize(
    "module",
    [
        "codec",
        "codec.messages",
        "clients",
        "clients.baselines",
        "fl_app.client_app",
        "fl_app.registry",
    ],
)
def test_client_side_needs_no_torch(module: str) -> None:
    files = _import_closure(module)
    assert len(files) > 1
    for file in files:
        names = _imports(_parsed(file), at_import_time=True)
        assert not {_top(name) for name in names} & TORCH, file


# Of Flower: gRPC, which 1.43 drops, and what only older apps use. Its messages, `flwr.proto.*_pb2`,
# stay, since HTTP carries them, too.
LEAVING = ("grpc", "flwr.server", "flwr.client", "flwr.simulation")


@pytest.mark.parametrize("package", ALLOWED)
def test_nothing_depends_on_what_leaves_flower(package: str) -> None:
    for source in _sources(package):
        for name in _imports(_parsed(source)):
            leaves = any(f"{name}.".startswith(f"{module}.") for module in LEAVING)
            assert not leaves and "grpc" not in name, f"{source}: {name}"


def test_no_option_of_flowers_grpc_services_is_used() -> None:
    texts = [*_sources("sim"), *(ROOT / "docs").rglob("*"), ROOT / "README.md"]
    options = ("fleet-api", "control-api", "health-server", "9092", "9093")
    for file in filter(Path.is_file, texts):
        if file.suffix == ".png":
            continue
        text = file.read_text(encoding="utf-8")
        assert not [option for option in options if option in text], file
