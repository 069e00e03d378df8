"""A device as it is installed: a fresh environment with the extra "edge", and no torch in it."""

import json
import os
import re
import subprocess
import sys
import venv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sim.launcher import run_app
from sim.superlink import SuperLink, free_port, running_superlink
from strategies import SampleBank

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[1]
MOST_BYTES = 400e6

CLIENT = """
import importlib.util, sys
import codec, clients, clients.baselines
import fl_app.client_app
for package in (codec, clients):
    assert package.__file__.startswith(sys.prefix), package.__file__
for name in ("torch", "torchvision", "ray", "matplotlib", "scipy", "flwr_datasets", "mlxtend"):
    assert importlib.util.find_spec(name) is None, name
"""
NO_SERVER = """
try:
    import strategies
except ImportError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment of a device; returns its folder of programs."""
    folder = tmp_path_factory.mktemp("edge") / "environment"
    venv.create(folder, with_pip=True, system_site_packages=False)
    install = [folder / "bin" / "pip", "install", "--quiet", f"{ROOT}[edge]"]
    subprocess.run(install, check=True, stdout=subprocess.DEVNULL)
    return folder / "bin"


def run(edge: Path, code: str, folder: Path) -> str:
    done = subprocess.run(
        [edge / "python", "-c", code],
        cwd=folder,
        # the app's code, which Flower brings with a run
        env={"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_device_is_small(edge: Path) -> None:
    files = [path for path in edge.parent.rglob("*") if path.is_file() and not path.is_symlink()]
    size = sum(path.stat().st_size for path in files)
    print(f'an environment with the extra "edge": {size / 1e6:.0f} MB in {len(files)} files')
    assert size < MOST_BYTES


def test_a_client_imports_without_torch(edge: Path, tmp_path: Path) -> None:
    (tmp_path / "fl_app").symlink_to(ROOT / "fl_app")
    run(edge, CLIENT, tmp_path)


def test_what_a_server_needs_is_named(edge: Path, tmp_path: Path) -> None:
    told = run(edge, NO_SERVER, tmp_path)
    assert told.startswith("the package torch is not installed: pip install 'torch', or, in the")
    assert "'.[strategies]'" in told


def test_the_environment_is_consistent(edge: Path) -> None:
    subprocess.run([edge / "pip", "check"], check=True, stdout=subprocess.DEVNULL)
    assert Path(sys.prefix) not in edge.parents


# A folder that a camera writes into, and a SuperNode that is killed meanwhile

CLASSES, SIDE, PER_ROUND = ("day", "night"), 16, 8
FIRST, SECOND, THIRD = range(24), range(24, 32), range(32, 40)
CONFIG = {
    "dataset": "imagefolder",
    "image-size": SIDE,
    "codec": "lossless",  # so that each image can be told from the others
    "model": "logistic",
    "num-rounds": 12,
    "server-steps": 2,
    "samples-per-round": PER_ROUND,
    "round-timeout": 20.0,
}


@dataclass
class Camera:
    """A device: its images, and a SuperNode from the environment of the extra "edge"."""

    edge: Path
    folder: Path
    superlink: SuperLink

    def write(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            name = f"train/{CLASSES[number % 2]}/{number}.png"
            Image.fromarray(picture(number)).save(self.folder / "images" / name)

    def start(self) -> None:
        settings = {
            "PATH": f"{self.edge}:{os.defpath}",
            "FLWR_HOME": self.folder / "flwr",
            "XDG_STATE_HOME": self.folder / "state",
            "XDG_CACHE_HOME": self.folder / "cache",
        }
        self.process = self.superlink.start(
            [
                "env",
                *(f"{name}={value}" for name, value in settings.items()),
                *("flower-supernode", "--superlink", self.superlink.address, "--insecure"),
                *("--port", str(free_port())),
                *("--node-config", f'data-dir="{self.folder / "images"}"'),
            ]
        )

    def restart(self) -> None:
        self.process.kill()
        self.process.wait()
        self.start()


def picture(number: int) -> NDArray[np.uint8]:
    """The image of a number, unlike all others."""
    return np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def image_folder(folder: Path) -> Path:
    for split in ("train", "test"):
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
    return folder


@pytest.mark.deployment
def test_each_image_of_a_growing_folder_arrives_once(edge: Path, tmp_path: Path) -> None:
    server, bank = image_folder(tmp_path / "server"), tmp_path / "bank.sqlite"
    for number in (1000, 1001):
        Image.fromarray(picture(number)).save(server / "test" / CLASSES[number % 2] / "x.png")
    image_folder(tmp_path / "device" / "images")
    paths = {"data-dir": str(server), "out-dir": str(tmp_path / "run"), "bank": str(bank)}
    with running_superlink() as superlink:
        camera = Camera(edge, tmp_path / "device", superlink)
        camera.write(FIRST)
        camera.start()
        happens = {
            2: lambda: camera.write(SECOND),
            3: camera.restart,
            6: lambda: camera.write(THIRD),
        }

        def watch(line: str) -> None:
            print(line)
            told = re.search(r"round (\d+)/", line)
            if told and int(told[1]) in happens:
                happens.pop(int(told[1]))()

        run_app(superlink, ROOT, CONFIG | paths, echo=watch)
    assert not happens
    received = SampleBank.open(bank)
    numbers = (*FIRST, *SECOND, *THIRD)
    sent = {picture(number).transpose(2, 0, 1).tobytes(): number for number in numbers}
    arrived = [sent[sample.tobytes()] for sample in received.samples]
    assert sorted(arrived) == sorted(numbers)
    assert received.targets.tolist() == [number % 2 for number in arrived]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["samples_sent"] == len(sent)
