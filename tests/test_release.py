"""What an index, Flower's app hub, and those who cite or install expect of a release."""

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from flwr.cli.build import build_fab_from_disk
from flwr.cli.utils import collect_files, filter_paths_for_publish, validate_project_name
from flwr.common.constant import FAB_INCLUDE_PATTERNS, FAB_MAX_SIZE
from flwr.supercore.constant import (
    APP_PUBLISH_ALLOWED_LICENSE_FILES,
    MAX_DIR_DEPTH,
    MAX_FILE_BYTES,
    MAX_FILE_COUNT,
    MAX_TOTAL_BYTES,
    UTF8,
)
from trove_classifiers import classifiers as known_classifiers

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TYPED = ("codec", "clients", "strategies")


# Metadata


def test_the_version_is_that_of_the_changelog_and_of_the_citation() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest and newest[1] == PROJECT["version"] == str(citation()["version"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", PROJECT["version"])


def test_every_entry_of_the_changelog_has_a_version_and_a_date() -> None:
    titles = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert titles
    for title in titles:
        assert re.fullmatch(r"\d+\.\d+\.\d+ \((unreleased|\d{4}-\d\d-\d\d)\)", title), title


def test_classifiers_are_known_and_say_what_else_is_said() -> None:
    chosen = PROJECT["classifiers"]
    assert set(chosen) <= set(known_classifiers) and len(set(chosen)) == len(chosen)
    assert "Typing :: Typed" in chosen
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert f"Programming Language :: Python :: {oldest}" in chosen
    assert "License :: OSI Approved :: Apache Software License" in chosen
    assert "Apache License" in (ROOT / PROJECT["license"]["file"]).read_text()


def test_addresses_are_complete() -> None:
    assert all(re.fullmatch(r"https://\S+", url) for url in PROJECT["urls"].values())


@pytest.mark.parametrize("package", TYPED)
def test_packages_are_marked_as_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


# Citation


PERSON, ENTITY = {"given-names", "family-names"}, {"name"}


def citation() -> dict[str, Any]:
    entry: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    return entry


def test_the_citation_file_has_what_the_format_asks_for() -> None:
    cited = citation()
    assert cited.keys() >= {"cff-version", "message", "title", "authors"}
    assert cited["cff-version"] == "1.2.0" and cited["type"] == "software"
    for work in (cited, *cited["references"]):
        assert work["title"] and work["authors"]
        assert all(author.keys() in (PERSON, ENTITY) for author in work["authors"])
    for work in cited["references"]:
        assert work["type"] == "article" and isinstance(work["year"], int)
        assert all(i.keys() == {"type", "value"} for i in work["identifiers"])


def test_the_citation_is_of_this_project() -> None:
    cited = citation()
    assert cited["title"] == PROJECT["name"]
    assert cited["abstract"] == PROJECT["description"]
    assert cited["keywords"] == PROJECT["keywords"]
    assert cited["license"] == "Apache-2.0"
    [paper] = cited["references"]
    assert paper["url"] == PROJECT["urls"]["Paper"]
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert paper["title"] in readme and f"Diggavi, {paper['year']}" in readme


# Wheel and source distribution


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Wheel and source distribution; the wheel is built from what the latter holds."""
    folder = tmp_path_factory.mktemp("release")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, stdout=subprocess.DEVNULL)
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, source


@pytest.mark.slow
def test_twine_takes_both(release: tuple[Path, Path]) -> None:
    run(sys.executable, "-m", "twine", "check", "--strict", *map(str, release))


@pytest.mark.slow
def test_the_contents_of_the_wheel_are_in_order(release: tuple[Path, Path]) -> None:
    run(sys.executable, "-m", "check_wheel_contents", str(release[0]))


@pytest.mark.slow
def test_the_wheel_is_typed_and_has_the_declared_metadata(release: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(release[0]) as wheel:
        assert {f"{package}/py.typed" for package in TYPED} <= set(wheel.namelist())
        (place,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
        metadata = wheel.read(place).decode()
    assert f"Version: {PROJECT['version']}\n" in metadata
    for classifier in PROJECT["classifiers"]:
        assert f"Classifier: {classifier}\n" in metadata
    assert "Description-Content-Type: text/markdown\n" in metadata


@pytest.mark.slow
def test_the_source_distribution_holds_what_tests_and_docs_need(
    release: tuple[Path, Path],
) -> None:
    with tarfile.open(release[1]) as source:
        names = {name.partition("/")[2] for name in source.getnames()}
    wanted = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md", "mkdocs.yml"}
    assert wanted <= names
    tops = {name.split("/")[0] for name in names}
    assert {"codec", "clients", "strategies", "fl_app", "sim", "tests", "docs"} <= tops
    assert not {"runs", "data", "site", "dist", ".git"} & tops


def run(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# Flower's app hub: `flwr app publish` uploads these files, and runs are made of the bundle


def published() -> dict[str, Path]:
    """Return what Flower would upload; files of other kinds are left out by it."""
    files = filter_paths_for_publish(collect_files(ROOT))
    return {name: path for name, path in files.items() if isinstance(path, Path)}


def test_the_hub_takes_so_many_files_of_this_size() -> None:
    sizes = {name: path.stat().st_size for name, path in published().items()}
    assert 0 < len(sizes) <= MAX_FILE_COUNT == 1000
    too_large = {name: size for name, size in sizes.items() if size > MAX_FILE_BYTES}
    assert not too_large and MAX_FILE_BYTES == 2**20
    assert sum(sizes.values()) <= MAX_TOTAL_BYTES


def test_the_hub_takes_text_only() -> None:
    for path in published().values():
        path.read_text(encoding=UTF8)  # raises, and names what is wrong


def test_folders_are_not_too_deep_for_the_hub() -> None:
    assert max(len(Path(name).parts) for name in published()) <= MAX_DIR_DEPTH


def test_the_hub_takes_name_description_and_licence() -> None:
    validate_project_name(PROJECT["name"], "name")
    assert 0 < len(PROJECT["description"]) < 200
    assert PROJECT["license"]["file"] in APP_PUBLISH_ALLOWED_LICENSE_FILES
    assert PROJECT["license"]["file"] in published()


def test_all_that_the_app_runs_is_of_a_kind_that_the_hub_takes() -> None:
    kinds = {Path(pattern).suffix for pattern in FAB_INCLUDE_PATTERNS} - {""}
    bundle = build_fab_from_disk(ROOT)
    assert len(bundle) <= FAB_MAX_SIZE
    folder = zipfile.ZipFile(BytesIO(bundle))
    inside = set(folder.namelist()) - {".info/CONTENT"}
    assert len(inside) <= MAX_FILE_COUNT
    assert inside <= set(published())
    for name in inside:
        assert Path(name).suffix in kinds or name == "LICENSE"
        assert folder.getinfo(name).file_size <= MAX_FILE_BYTES
        folder.read(name).decode(UTF8)
