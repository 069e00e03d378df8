"""A folder that a camera writes into: what is new is read, and nothing half-written is lost."""

import os
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from PIL import Image

from clients.device_file import Device, DeviceFile
from codec import CodecOptions, SamplePayload, decode_samples
from codec.identity import receipt
from codec.messages import ReplayRequest, Terms
from fl_app import growing_folder
from fl_app.client_app import app
from fl_app.growing_folder import GrowingFolder
from fl_app.image_folder import ImageFolder
from fl_app.images import MissingSplit

BANK = b"a camera"
CLASSES = ("bird", "cat")


class Camera:
    """A device whose folder grows; each of its answers could be a process of its own.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.state, self.round = folder, RecordDict(), 0
        self.acknowledged, self.received = b"", Counter[tuple[int, int]]()
        self.reply: dict[str, Any] = {}
        for name in CLASSES:
            (folder / "train" / name).mkdir(parents=True)

    def path(self, number: int, name: str = "") -> Path:
        return self.folder / "train" / (name or CLASSES[number % 2]) / f"{number}.png"

    def take(self, *numbers: int, age: float = 60.0) -> None:
        """Take photographs, each of a grey of its own."""
        for number in numbers:
            Image.new("L", (10, 12), number).save(self.path(number))
            changed = time.time() - age
            os.utime(self.path(number), (changed, changed))

    def ask(self) -> list[int]:
        """Return what arrives."""
        self.round += 1
        request = ReplayRequest(
            server_round=self.round,
            bank=BANK,
            acknowledged=self.acknowledged,
            codec=CodecOptions("lossless"),
            terms=Terms((3, 8, 8), 2, CLASSES),
        )
        node = {"data-dir": str(self.folder), "state-dir": str(self.folder / "state")}
        context = Context(1, 3, node, self.state, {"dataset": "imagefolder", "image-size": 8})
        content = RecordDict({"config": ConfigRecord(request.to_entries())})
        reply = app(Message(content, 3, "train"), context).content
        self.reply = {**reply.config_records["payload"], **reply["metrics"]}
        self.acknowledged = receipt((self.reply["samples"],))
        if not self.reply["samples"]:
            return []
        decoded = decode_samples(SamplePayload.from_bytes(self.reply["samples"]))
        greys = decoded.samples[:, 0, 0, 0].astype(int).tolist()
        arrived = list(zip(greys, decoded.targets.tolist(), strict=True))
        self.received.update(arrived)
        return sorted(greys)


@pytest.fixture
def camera(tmp_path: Path) -> Camera:
    return Camera(tmp_path)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the files that are decoded."""
    counted = Counter[str]()
    read = growing_folder.read_picture

    def counting(path: Path, *others: Any) -> Any:
        counted[path.name] += 1
        return read(path, *others)

    monkeypatch.setattr(growing_folder, "read_picture", counting)
    return counted


def test_only_what_is_new_is_read_and_sent(camera: Camera, reads: Counter[str]) -> None:
    camera.take(*range(20))
    assert camera.ask() == list(range(20))
    assert camera.reply["growing"] and not camera.reply["remaining"]
    for lost in (False, True):
        reads.clear()
        camera.take(30 + lost)
        if lost:
            camera.state = RecordDict()
        assert camera.ask() == [30 + lost]
        assert reads.total() <= 1 + 4  # four say what the samples are
    reads.clear()
    assert camera.ask() == [] and reads.total() <= 4
    assert all((grey % 2) == label for grey, label in camera.received)
    assert max(camera.received.values()) == 1


def test_nothing_is_sent_again_that_is_moved_touched_or_taken_away(camera: Camera) -> None:
    camera.take(*range(10))
    camera.ask()
    os.utime(camera.path(4))
    camera.path(6).rename(camera.path(106))
    camera.path(8).unlink()
    os.utime(camera.path(106), (1, 1))
    assert camera.ask() == [] and max(camera.received.values()) == 1
    camera.path(3).rename(camera.path(3, "bird"))  # under another label it is another sample
    assert camera.ask() == [3] and camera.received[3, 0] == camera.received[3, 1] == 1


def test_what_is_being_written_is_left_for_later(camera: Camera) -> None:
    camera.take(*range(6))
    camera.take(7, age=0.0)
    whole = camera.path(5).read_bytes()
    camera.path(5).write_bytes(whole[:40])
    os.utime(camera.path(5), (time.time() - 3, time.time() - 3))
    assert camera.ask() == [0, 1, 2, 3, 4] and "skipped" not in camera.reply
    assert camera.reply["remaining"] == 1
    camera.path(5).write_bytes(whole)
    for number in (5, 7):
        os.utime(camera.path(number), (time.time() - 3, time.time() - 3))
    assert camera.ask() == [5, 7] and not camera.reply["remaining"]


def test_what_stays_unreadable_is_told_once(camera: Camera) -> None:
    camera.take(*range(4))
    camera.path(9).write_bytes(b"no image")
    os.utime(camera.path(9), (100, 100))
    assert camera.ask() == [0, 1, 2, 3]
    assert "no image that Pillow reads" in camera.reply["skipped"]
    assert camera.ask() == [] and "skipped" not in camera.reply
    camera.take(9)  # written anew
    assert camera.ask() == [9]


def test_a_clock_that_was_set_back_stops_nothing(camera: Camera) -> None:
    camera.take(*range(4), age=-3600.0)
    assert camera.ask() == [0, 1, 2, 3]


def test_an_empty_folder_waits(camera: Camera) -> None:
    assert camera.ask() == [] and camera.reply["growing"]
    camera.take(1)
    assert camera.ask() == [1]


def test_a_folder_that_is_not_there_is_named(camera: Camera) -> None:
    shutil.rmtree(camera.folder / "train")
    with pytest.raises(MissingSplit, match="no folder"):
        camera.ask()


def test_pixels_are_those_of_the_decoded_folder(camera: Camera) -> None:
    rng = np.random.default_rng(0)
    for number in range(4):
        pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(camera.path(number))
        os.utime(camera.path(number), (50, 50))
    folder = ImageFolder(camera.folder, 8)
    eager, lazy = folder.load("train"), GrowingFolder.of(folder, "train", time.time())
    assert lazy is not None and len(lazy) == len(eager) == 4
    items = [lazy[index] for index in range(4)]
    assert (np.stack([pixels for pixels, _ in items]) == eager.samples).all()
    assert [label for _, label in items] == eager.labels.tolist()
    assert lazy.class_names == eager.class_names and lazy.shape == eager.samples.shape[1:]


def test_deeper_images_are_not_taken_one_by_one(camera: Camera) -> None:
    for number in range(3):
        Image.new("I;16", (9, 9), 1000).save(camera.path(number))
        os.utime(camera.path(number), (50, 50))
    assert GrowingFolder.of(ImageFolder(camera.folder, 8), "train", time.time()) is None


def test_one_deeper_image_is_of_no_use(camera: Camera) -> None:
    camera.take(*range(4))
    Image.new("I;16", (9, 9), 1000).save(camera.path(5))
    os.utime(camera.path(5), (50, 50))
    assert camera.ask() == [0, 1, 2, 3]
    assert "of more than 8 bits among 8-bit ones" in camera.reply["skipped"]


def test_the_device_remembers_in_the_folder_of_its_node(camera: Camera) -> None:
    camera.take(1, 2)
    camera.ask()
    device = Device(camera.folder / "state", "3", b"")
    assert len(DeviceFile(device, BANK).read().pending) == 2
