from pathlib import Path
from typing import Any

import datasets as hf
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Subset, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import ToTensor

from clients.source import ArraySource, SampleSource, as_source, fetch, source_spec
from codec import CodecError, CodecOptions


def indices(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def digits(count: int = 6) -> ArraySource:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 1, 4, 4)).astype(np.uint8)
    return ArraySource(pixels, np.arange(count) % 3, 3, 0.0, 255.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes with two RGB images of 5x4 pixels each, losslessly stored."""
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for number in range(2):
            pixels = np.full((4, 5, 3), [100 * label, 10 * number, 7], np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    return tmp_path


def test_array_source_gives_items_in_the_order_asked() -> None:
    source = digits()
    samples, targets = source.get_items(indices(4, 1))
    assert isinstance(source, SampleSource) and len(source) == 6
    assert (samples == source.samples[[4, 1]]).all()
    assert targets.tolist() == [1, 1]


def test_array_source_refuses_unequal_lengths() -> None:
    with pytest.raises(CodecError, match="2 targets for 3 samples"):
        ArraySource(np.zeros((3, 4), np.uint8), np.zeros(2, np.int64), 2, 0, 255)


def test_a_source_is_taken_as_it_is() -> None:
    source = digits()
    assert as_source(source) is source


def test_image_folder_gives_channels_first_and_knows_its_classes(folder: Path) -> None:
    source = as_source(ImageFolder(folder))
    samples, targets = source.get_items(indices(0, 3))
    assert (source.classes, source.low, source.high) == (2, 0.0, 255.0)
    assert samples.shape == (2, 3, 4, 5) and samples.dtype == np.uint8
    assert samples[1, :, 2, 2].tolist() == [100, 10, 7]
    assert targets.tolist() == [0, 1]


def test_tensors_of_a_subset_of_an_image_folder(folder: Path) -> None:
    source = as_source(Subset(Subset(ImageFolder(folder, ToTensor()), [3, 2, 0]), [0, 1]))
    spec = source_spec(source, CodecOptions())
    samples, targets = fetch(source, indices(0, 1), spec)
    assert (spec.shape, spec.dtype, spec.low, spec.high) == ((3, 4, 5), "float32", 0.0, 1.0)
    assert source.classes == 2 and targets.tolist() == [1, 1]
    assert samples[0, 0, 0, 0] == np.float32(100 / 255)


def test_hugging_face_dataset_of_images() -> None:
    features = hf.Features({"img": hf.Image(), "label": hf.ClassLabel(num_classes=7)})
    gray = [Image.fromarray(np.full((3, 3), value, np.uint8)) for value in (5, 6)]
    dataset = hf.Dataset.from_dict({"img": gray, "label": [6, 2]}, features=features)
    source = as_source(dataset)
    samples, targets = source.get_items(indices(0, 1))
    assert source.classes == 7 and samples.shape == (2, 1, 3, 3)
    assert samples[:, 0, 0, 0].tolist() == [5, 6] and targets.tolist() == [6, 2]


def test_regression_targets_become_float_columns() -> None:
    generator = torch.Generator().manual_seed(0)
    dataset = TensorDataset(torch.rand(5, 8, generator=generator), torch.arange(5.0))
    source = as_source(dataset, classes=0)
    spec = source_spec(source, CodecOptions())
    _, targets = fetch(source, indices(2, 4), spec)
    assert (spec.shape, spec.classes, spec.target_size) == ((8,), 0, 1)
    assert targets.dtype == np.float32 and targets.tolist() == [[2.0], [4.0]]


def test_float64_samples_are_taken_as_float32() -> None:
    source = ArraySource(np.linspace(0, 1, 12).reshape(3, 4), np.zeros(3, np.int64), 1, 0.0, 1.0)
    spec = source_spec(source, CodecOptions())
    assert spec.dtype == "float32" and fetch(source, indices(0), spec)[0].dtype == np.float32


def test_unknown_classes_are_asked_for() -> None:
    dataset = TensorDataset(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))
    with pytest.raises(CodecError, match="pass classes="):
        as_source(dataset)


def test_empty_source_has_no_spec() -> None:
    with pytest.raises(CodecError, match="0 samples"):
        source_spec(digits(0), CodecOptions())


def broken(value: float, row: int) -> ArraySource:
    samples = np.full((4, 2, 3), 0.5, np.float32)
    samples[row, 1, 2] = value
    return ArraySource(samples, np.zeros(4, np.int64), 2, 0.0, 1.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.25, 1.25])
def test_illegal_values_are_named(value: float) -> None:
    source = broken(value, row=3)
    spec = source_spec(source, CodecOptions())
    with pytest.raises(CodecError, match=rf"sample 3: value {value} outside \[0, 1\]"):
        fetch(source, indices(1, 3, 2), spec)
    fetch(source, indices(0, 1, 2), spec)


def test_uint8_values_are_checked_against_a_narrow_range() -> None:
    source = ArraySource(np.full((2, 3), 9, np.uint8), np.zeros(2, np.int64), 1, 0.0, 8.0)
    with pytest.raises(CodecError, match=r"sample 1: value 9 outside \[0, 8\]"):
        fetch(source, indices(1), source_spec(source, CodecOptions()))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (np.array([0, 1, 3]), r"target of sample 2: value 3 outside \[0, 2\]"),
        (np.array([0, -1, 1]), r"target of sample 1: value -1 outside \[0, 2\]"),
        (np.array([0.0, 1.0, 2.0]), "expected integers"),
        (np.zeros((3, 2), np.int64), "expected integers"),
    ],
)
def test_illegal_labels_are_named(targets: NDArray[Any], message: str) -> None:
    source = ArraySource(np.zeros((3, 4), np.uint8), targets, 3, 0.0, 255.0)
    with pytest.raises(CodecError, match=message):
        fetch(source, indices(0, 1, 2), source_spec(source, CodecOptions()))


def test_illegal_float_targets_are_named() -> None:
    targets = np.array([[0.0, 1.0], [np.nan, 0.0]], np.float32)
    source = ArraySource(np.zeros((2, 4), np.uint8), targets, 0, 0.0, 255.0)
    with pytest.raises(CodecError, match="target of sample 1: value nan"):
        fetch(source, indices(0, 1), source_spec(source, CodecOptions()))


def test_integer_samples_other_than_uint8_are_refused() -> None:
    source = ArraySource(np.zeros((2, 4), np.int32), np.zeros(2, np.int64), 1, 0.0, 255.0)
    with pytest.raises(CodecError, match="dtype int32"):
        source_spec(source, CodecOptions())


def test_images_of_different_sizes_are_named(folder: Path) -> None:
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder / "dog" / "2.png")
    source = as_source(ImageFolder(folder))
    spec = source_spec(source, CodecOptions())
    with pytest.raises(CodecError, match=r"sample 4 has shape \(3, 9, 9\)"):
        fetch(source, indices(0, 4), spec)
    with pytest.raises(CodecError, match=r"samples 4..4: uint8 of shape \(1, 3, 9, 9\)"):
        fetch(source, indices(4), spec)
