"""What is shipped: the wheel for those who plug in, the bundle for those who run the app."""

import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
LIBRARY = {"codec", "clients", "strategies"}
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
PLUG_IN = """
import sys
import codec, clients, strategies
from clients import ArraySource
from codec import CodecOptions
from strategies import QuantizedDataReplay
for package in (codec, clients, strategies):
    assert package.__file__.startswith(sys.argv[1]), package.__file__
"""


def _sources(*packages: str) -> set[str]:
    return {
        file.relative_to(ROOT).as_posix()
        for package in packages
        for file in (ROOT / package).rglob("*.py")
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_wheel_holds_the_library_only(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    info = f"flwr_quantized_data-{VERSION}.dist-info"
    metadata = {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "licenses/LICENSE")}
    typed = {f"{package}/py.typed" for package in LIBRARY}
    assert names == _sources(*LIBRARY) | typed | metadata


def test_wheel_plugs_into_a_foreign_project(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, "--target", str(target), str(wheel)], check=True)
    run = [sys.executable, "-c", PLUG_IN, str(target)]
    subprocess.run(run, check=True, cwd=tmp_path, env={"PYTHONPATH": str(target)})


def test_bundle_holds_what_runs_and_nothing_else(tmp_path: Path) -> None:
    flwr = Path(sysconfig.get_path("scripts"), "flwr")
    command = [str(flwr), "build", "--app", str(ROOT)]
    subprocess.run(command, check=True, cwd=tmp_path, stdout=subprocess.DEVNULL)
    (bundle,) = tmp_path.glob("*.fab")
    names = set(zipfile.ZipFile(bundle).namelist())
    others = {"pyproject.toml", "README.md", "LICENSE", ".info/CONTENT"}
    assert names == _sources(*LIBRARY, "fl_app") | others
    assert bundle.stat().st_size < 2_000_000  # not compressed; Flower takes 10 MB
