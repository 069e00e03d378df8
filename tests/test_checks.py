"""What the launcher looks at before a run: it refuses nothing that would work."""

import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fl_app.data import extent, load
from sim.cli.checks import check_run
from sim.cli.options import APP
from sim.run_config import read_defaults


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, number in (("train", 3), ("test", 1)):
        for name in ("cat", "dog"):
            place = tmp_path / split / name
            place.mkdir(parents=True)
            for index in range(number):
                Image.fromarray(np.full((8, 8), index, np.uint8)).save(place / f"{index}.png")
    return tmp_path


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("dataset", ["mnist5k", "imagefolder", "cifar10"])
def test_the_extent_is_that_of_the_data(dataset: str, split: str, folder: Path) -> None:
    images = load(dataset, split, str(folder), 8)
    assert extent(dataset, split, str(folder), 8) == (len(images.labels), images.classes)


@pytest.mark.parametrize(
    ("clients", "entries"),
    [
        (10, {}),
        (4000, {}),
        (3, {"min-available-nodes": 3, "min-train-nodes": 3}),
        (40, {"max-train-samples": 40}),
        (6, {"dataset": "imagefolder", "codec": "jpeg"}),
        (2, {"strategy": "streaming", "codec": "avif", "dataset": "cifar10"}),
        (2, {"strategy": "fedavg"}),
        (2, {"device": "cpu"}),
    ],
)
def test_what_works_is_let_through(
    clients: int, entries: dict[str, int | str], folder: Path
) -> None:
    check_run(APP, read_defaults(APP) | {"data-dir": str(folder)} | entries, clients)


def test_other_apps_check_themselves(tmp_path: Path) -> None:
    check_run(tmp_path, {"strategy": "theirs"}, 1)


@pytest.mark.parametrize("name", ["paper", "practical", "resnet9"])
def test_presets_are_let_through(name: str) -> None:
    preset = tomllib.loads((APP / "fl_app" / "presets" / f"{name}.toml").read_text())
    check_run(APP, read_defaults(APP) | preset, 10)
