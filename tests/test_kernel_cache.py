"""Compiled kernels are found again wherever equal sources lie, and only then."""

import importlib.util
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

numba = pytest.importorskip("numba")

from codec.coding import compiled, kernel_cache  # noqa: E402
from codec.coding.kernel_cache import ByContent, digest_of_sources  # noqa: E402

KERNEL = """
from codec.coding.compiled import jit

@jit
def twice(number: int) -> int:
    return 2 * number
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    return tmp_path / "cache" / "flwr-quantized-data-kernels"


def kernel_in(folder: Path) -> Any:
    """Return a kernel whose source lies in a folder of its own."""
    place = folder / "kernels"
    place.mkdir(parents=True)
    (place / "doubling.py").write_text(KERNEL)
    spec = importlib.util.spec_from_file_location("doubling", place / "doubling.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.twice


def hits(kernel: Any) -> int:
    assert kernel(21) == 42
    return sum(kernel.stats.cache_hits.values())


def test_equal_sources_elsewhere_are_not_compiled_again(tmp_path: Path, cache: Path) -> None:
    assert hits(kernel_in(tmp_path / "one")) == 0
    assert hits(kernel_in(tmp_path / "two")) == 1
    assert [path.name for path in cache.iterdir()] == [digest_of_sources(kernel_cache._SOURCES)]
    assert not list(tmp_path.glob("*/kernels/__pycache__/*.nbi"))


def test_other_sources_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hits(kernel_in(tmp_path / "one")) == 0
    other = tmp_path / "codec"
    shutil.copytree(kernel_cache._SOURCES, other, ignore=shutil.ignore_patterns("__pycache__"))
    assert digest_of_sources(other) == digest_of_sources(kernel_cache._SOURCES)
    with (other / "coding" / "range_coder.py").open("a") as file:
        file.write("# one more line\n")
    digest_of_sources.cache_clear()
    monkeypatch.setattr(kernel_cache, "_SOURCES", other)
    assert hits(kernel_in(tmp_path / "two")) == 0


def test_where_the_user_says_goes_first(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "said"))
    assert hits(kernel_in(tmp_path / "one")) == 0
    assert list((tmp_path / "said").rglob("*.nbi")) and not cache.exists()


def test_a_folder_that_cannot_be_made_leaves_numba_s_own(tmp_path: Path, cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("a file")
    assert ByContent.from_function(hits, __file__) is None
    assert hits(kernel_in(tmp_path / "one")) == 0
    assert list(tmp_path.glob("one/kernels/__pycache__/*.nbi"))


def test_what_is_long_unused_is_removed(cache: Path, tmp_path: Path) -> None:
    for name, days in (("old", 31), ("recent", 29)):
        (cache / name).mkdir(parents=True)
        then = time.time() - days * 86_400
        os.utime(cache / name, (then, then))
    assert hits(kernel_in(tmp_path / "one")) == 0
    assert {path.name for path in cache.iterdir()} > {"recent"}
    assert not (cache / "old").exists()


def test_numba_s_settings_are_as_they_were() -> None:
    with kernel_cache.kept_by_content():
        assert "ByContent" in numba.config.CACHE_LOCATOR_CLASSES
    assert numba.config.CACHE_LOCATOR_CLASSES == ""
    assert compiled.jit.__doc__


def test_a_user_without_a_home_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(cls: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", classmethod(homeless))
    assert ByContent.from_function(hits, __file__) is None
