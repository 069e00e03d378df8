"""Tests of fl_app.data, on small data sets written in each format."""

import contextlib
import gzip
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from fl_app.data import DataError, MissingSplit, describe, load


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point the cache of decoded arrays to an empty folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def random_images(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes((gzip.compress if path.suffix == ".gz" else bytes)(head + array.tobytes()))


def test_mnist5k_is_a_stratified_split_without_overlap() -> None:
    train, test = load("mnist5k", "train"), load("mnist5k", "test")
    assert train.samples.shape == (4000, 1, 28, 28)
    assert train.samples.dtype == np.uint8
    assert train.labels.dtype == np.int64
    assert np.bincount(train.labels).tolist() == [400] * 10
    assert np.bincount(test.labels).tolist() == [100] * 10
    assert not {s.tobytes() for s in test.samples} & {s.tobytes() for s in train.samples}


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("sub", [".", "FashionMNIST/raw"])
def test_fashion_mnist_from_idx_files(tmp_path: Path, sub: str, end: str) -> None:
    images, labels = random_images(7, 28, 28), np.arange(7, dtype=np.uint8)
    root = tmp_path / sub
    root.mkdir(parents=True, exist_ok=True)
    write_idx(root / f"t10k-images-idx3-ubyte{end}", images)
    write_idx(root / f"t10k-labels-idx1-ubyte{end}", labels)
    test = load("fashion-mnist", "test", str(tmp_path))
    assert np.array_equal(test.samples[:, 0], images)
    assert test.labels.tolist() == labels.tolist()
    assert test.classes == 10


def test_cifar10_from_python_batches(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    data = random_images(10, 3072)
    for i in range(5):
        batch = {b"data": data[2 * i : 2 * i + 2], b"labels": [i, i + 1]}
        (folder / f"data_batch_{i + 1}").write_bytes(pickle.dumps(batch))
    train = load("cifar10", "train", str(tmp_path))
    assert np.array_equal(train.samples, data.reshape(10, 3, 32, 32))
    assert train.labels.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]


def test_cifar100_uses_fine_labels(tmp_path: Path) -> None:
    batch = {b"data": random_images(2, 3072), b"fine_labels": [99, 3], b"coarse_labels": [1, 2]}
    (tmp_path / "test").write_bytes(pickle.dumps(batch))
    test = load("cifar100", "test", str(tmp_path))
    assert (test.labels.tolist(), test.classes) == ([99, 3], 100)


def test_batch_file_that_holds_code_is_refused(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[object, ...]:
            return print, ("executed",)

    (tmp_path / "test").write_bytes(pickle.dumps({b"data": Code()}))
    with pytest.raises(DataError, match=r"cannot read .*test: unexpected builtins\.print"):
        load("cifar100", "test", str(tmp_path))


def test_truncated_file_is_named(tmp_path: Path) -> None:
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.zeros(2, np.uint8))
    write_idx(tmp_path / "t10k-images-idx3-ubyte", random_images(2, 28, 28))
    path = tmp_path / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"cannot read .*images-idx3"):
        load("fashion-mnist", "test", str(tmp_path))


def test_image_folder_numbers_classes_by_name_and_crops_the_centre(tmp_path: Path) -> None:
    wide, gray = np.zeros((32, 64, 3), np.uint8), random_images(16, 16)
    wide[:, 12:52, 0] = 255
    write_png(tmp_path / "train" / "b" / "wide.PNG", wide)
    write_png(tmp_path / "train" / "a" / "deep" / "gray.png", gray)
    (tmp_path / "train" / "a" / "notes.txt").write_text("no image")
    train = load("imagefolder", "train", str(tmp_path), image_size=16)
    assert train.samples.shape == (2, 3, 16, 16)
    assert train.labels.tolist() == [0, 1]
    assert np.array_equal(train.samples[0], np.stack([gray] * 3))
    assert train.samples[1].mean(axis=(1, 2)).tolist() == [255, 0, 0]


def test_cifar10_may_be_an_image_folder_and_val_stands_for_test(tmp_path: Path) -> None:
    pixels = random_images(32, 32, 3)
    for split in ("train", "val"):
        write_png(tmp_path / split / "cat" / "0.png", pixels)
    test = load("cifar10", "test", str(tmp_path))
    assert np.array_equal(test.samples[0], pixels.transpose(2, 0, 1))


def test_splits_with_different_classes_are_refused(tmp_path: Path) -> None:
    write_png(tmp_path / "train" / "cat" / "0.png", random_images(8, 8))
    write_png(tmp_path / "test" / "dog" / "0.png", random_images(8, 8))
    with pytest.raises(DataError, match="do not hold the same class folders"):
        load("imagefolder", "train", str(tmp_path))


def test_broken_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "0.jpg").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"cannot decode .*0\.jpg"):
        load("imagefolder", "train", str(tmp_path))


def test_second_load_reads_the_cache_until_the_source_changes(tmp_path: Path, cache: Path) -> None:
    source = tmp_path / "train" / "cat" / "0.png"
    write_png(source, random_images(8, 8))
    load("imagefolder", "train", str(tmp_path), 8)
    (entry,) = (cache / "flwr-quantized-data").iterdir()
    stamp = (entry / "samples.npy").stat().st_mtime_ns
    again = load("imagefolder", "train", str(tmp_path), 8)
    assert isinstance(again.samples, np.memmap)
    assert (entry / "samples.npy").stat().st_mtime_ns == stamp
    write_png(source, random_images(9, 9))
    load("imagefolder", "train", str(tmp_path), 8)
    assert len(list((cache / "flwr-quantized-data").iterdir())) == 2


@pytest.mark.parametrize(
    ("dataset", "command"),
    [
        ("fashion-mnist", "torchvision.datasets.FashionMNIST("),
        ("cifar10", "torchvision.datasets.CIFAR10("),
        ("cifar100", "torchvision.datasets.CIFAR100("),
        ("imagefolder", "train/<class>/*.jpg"),
    ],
)
def test_missing_data_are_reported_with_what_brings_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str, command: str
) -> None:
    monkeypatch.setattr("fl_app.raw_files._DEBIAN_FASHION_MNIST", tmp_path / "not installed")
    with pytest.raises(DataError) as caught:
        load(dataset, "test", str(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert command in str(caught.value)


IMAGES = "t10k-images-idx3-ubyte"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[:-1], "holds 5487 bytes of values, its head says 5488"),
        (lambda b: b + b"x", "holds 5489 bytes of values"),
        (lambda b: b"<!DOCTYPE html>", r"begins with b'<!DO', and is no IDX file"),
        (lambda b: b"", r"begins with b''"),
        (lambda b: b[:9], r"and is no IDX file"),
        (lambda b: b[:4] + b"\xff" * 12 + b[16:], "its head says 79228162458924105385300197375"),
    ],
)
@pytest.mark.parametrize("end", ["", ".gz"])
def test_damaged_idx_file_is_named_with_what_to_do(
    tmp_path: Path, damage: Callable[[bytes], bytes], message: str, end: str
) -> None:
    write_idx(tmp_path / f"t10k-labels-idx1-ubyte{end}", np.arange(7, dtype=np.uint8))
    write_idx(tmp_path / IMAGES, random_images(7, 28, 28))
    content = damage((tmp_path / IMAGES).read_bytes())
    (tmp_path / IMAGES).unlink()
    (tmp_path / (IMAGES + end)).write_bytes(gzip.compress(content) if end else content)
    with pytest.raises(DataError, match=message) as caught:
        load("fashion-mnist", "test", str(tmp_path))
    assert "To replace it: python -c" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x1f\x8b", b"plain", gzip.compress(bytes(99), mtime=0)[:-9]],
    ids=["empty", "cut header", "not gzip", "cut data"],
)
def test_damaged_gzip_file_is_named(tmp_path: Path, content: bytes) -> None:
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.arange(7, dtype=np.uint8))
    (tmp_path / f"{IMAGES}.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read .*images-idx3.* To replace it"):
        load("fashion-mnist", "test", str(tmp_path))


@pytest.mark.parametrize(
    ("shape", "labels", "message"),
    [
        ((7, 32, 32), range(7), r"images are uint8 \(32, 32\)|\(1, 32, 32\), not uint8"),
        ((7, 28, 28), range(6), r"7 images with labels of shape \(6,\)"),
        ((7, 28, 28), range(20, 27), "labels from 20 to 26; legal are 0 to 9"),
        ((0, 28, 28), range(0), r"0 images with labels"),
    ],
)
def test_files_that_do_not_belong_together(
    tmp_path: Path, shape: tuple[int, ...], labels: range, message: str
) -> None:
    write_idx(tmp_path / IMAGES, random_images(*shape))
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.array(labels, np.uint8))
    with pytest.raises(DataError, match=message):
        load("fashion-mnist", "test", str(tmp_path))


GOOD = pickle.dumps({b"data": random_images(2, 3072), b"fine_labels": [99, 3]})


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"<!DOCTYPE html>", GOOD[:-100], GOOD[:10], b"\x80\x04."),
        pickle.dumps([1, 2]),
        pickle.dumps({b"data": random_images(2, 3072)}),
        pickle.dumps({b"data": random_images(2, 3071), b"fine_labels": [1, 2]}),
        pickle.dumps({b"data": random_images(2, 3072), b"fine_labels": [1, 100]}),
        pickle.dumps({b"data": random_images(2, 3072), b"fine_labels": ["a", "b"]}),
        pickle.dumps({b"data": random_images(2, 3072) / 2, b"fine_labels": [1, 2]}),
        pickle.dumps({b"data": "images", b"fine_labels": [1, 2]}),
    ],
)
def test_damaged_cifar_batch_is_named_with_what_to_do(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "test").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read .*test: .* To replace it: python -c"):
        load("cifar100", "test", str(tmp_path))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(st.data())
def test_altered_cifar_batches_load_or_are_refused(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(GOOD)
    for _ in range(3):
        position = data.draw(st.integers(0, 200) | st.integers(0, len(GOOD) - 1))
        content[position] = data.draw(st.integers(0, 255))
    (tmp_path / "test").write_bytes(content)
    with contextlib.suppress(DataError):
        assert load("cifar100", "test", str(tmp_path)).samples.shape[1:] == (3, 32, 32)


def test_a_server_without_test_files_is_told_whether_it_has_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fl_app.raw_files._DEBIAN_FASHION_MNIST", tmp_path / "not installed")
    for dataset in ("fashion-mnist", "cifar10", "cifar100"):
        with pytest.raises(MissingSplit) as caught:
            load(dataset, "test", str(tmp_path))
        assert (caught.value.split, caught.value.other) == ("test", False)
    write_idx(tmp_path / "train-images-idx3-ubyte", random_images(2, 28, 28))
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(2, np.uint8))
    (tmp_path / "train").write_bytes(GOOD)
    for dataset in ("fashion-mnist", "cifar100"):
        with pytest.raises(MissingSplit) as caught:
            load(dataset, "test", str(tmp_path))
        assert caught.value.other


@pytest.mark.parametrize(
    ("dataset", "shape", "classes"),
    [
        ("mnist5k", (1, 28, 28), 10),
        ("fashion-mnist", (1, 28, 28), 10),
        ("cifar10", (3, 32, 32), 10),
        ("cifar100", (3, 32, 32), 100),
    ],
)
def test_known_data_sets_are_described_without_their_files(
    tmp_path: Path, dataset: str, shape: tuple[int, ...], classes: int
) -> None:
    kind = describe(dataset, str(tmp_path))
    assert (kind.shape, kind.dtype, kind.classes) == (shape, "uint8", classes)
    assert kind.class_names == ()


def test_cifar_as_a_folder_is_described_by_it(tmp_path: Path) -> None:
    write_png(tmp_path / "test" / "cat" / "0.png", random_images(32, 32, 3))
    kind = describe("cifar10", str(tmp_path))
    assert (kind.shape, kind.class_names) == ((3, 32, 32), ("cat",))


def test_description_is_what_loads() -> None:
    images, kind = load("mnist5k", "test"), describe("mnist5k")
    assert (images.samples.shape[1:], images.classes) == (kind.shape, kind.classes)


def test_names_for_a_data_set_that_numbers_its_classes() -> None:
    digits = [str(digit) for digit in range(10)]
    assert load("mnist5k", "test", class_names=digits).classes == 10
    with pytest.raises(DataError, match=r"mnist5k has 10 classes, .* 3 class names are given"):
        load("mnist5k", "test", class_names=digits[:3])


@pytest.mark.parametrize(
    ("dataset", "split", "size", "message"),
    [
        ("mnist", "train", 8, "dataset = 'mnist' must be one of mnist5k, .*; did you mean"),
        ("mnist5k", "validation", 8, "split = 'validation' must be one of train, test"),
        ("imagefolder", "train", 0, "image_size = 0 must be >= 1"),
    ],
)
def test_illegal_arguments_are_named(dataset: str, split: str, size: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(dataset, split, "", size)
