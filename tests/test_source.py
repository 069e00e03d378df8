from pathlib import Path
from typing import Any

import datasets as hf
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pandas import DataFrame
from PIL import Image
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)
from torch.utils.data.distributed import DistributedSampler
from torchvision.datasets import ImageFolder
from torchvision.transforms import ToTensor

from clients.reading import Reader
from clients.source import ArraySource, DatasetSource, SampleSource, as_source
from codec import CodecError


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
    named = as_source(source, class_names=["a", "b", "c"], value_range=(0, 200))
    assert isinstance(named, ArraySource) and named.samples is source.samples
    assert (named.class_names, named.low, named.high) == (["a", "b", "c"], 0, 200)


def test_image_folder_gives_channels_first_and_knows_its_classes(folder: Path) -> None:
    source = as_source(ImageFolder(folder))
    assert isinstance(source, DatasetSource) and source.class_names == ("cat", "dog")
    samples, targets = source.get_items(indices(0, 3))
    assert (source.classes, source.low, source.high) == (2, None, None)
    assert samples.shape == (2, 3, 4, 5) and samples.dtype == np.uint8
    assert samples[1, :, 2, 2].tolist() == [100, 10, 7]
    assert targets.tolist() == [0, 1]


def test_tensors_of_a_subset_of_an_image_folder(folder: Path) -> None:
    source = as_source(Subset(Subset(ImageFolder(folder, ToTensor()), [3, 2, 0]), [0, 1]))
    reader = Reader(source)
    batch = reader.read(indices(0, 1))
    assert (reader.kind.shape, reader.kind.dtype) == ((3, 4, 5), "float32")
    assert source.classes == 2 and batch.targets.tolist() == [1, 1]
    assert batch.samples[0, 0, 0, 0] == np.float32(100 / 255)


def test_one_class_list_of_a_data_set_in_parts(folder: Path) -> None:
    parts = ConcatDataset([ImageFolder(folder), Subset(ImageFolder(folder), [2])])
    source = as_source(parts)
    assert isinstance(source, DatasetSource) and source.class_names == ("cat", "dog")
    assert len(source) == 5 and source.get_items(indices(4))[1].tolist() == [1]


def test_parts_with_different_classes_are_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for name in ("cat", "bird"):
        (other / name).mkdir(parents=True)
        Image.new("RGB", (5, 4)).save(other / name / "0.png")
    with pytest.raises(CodecError, match=r"different classes: cat, dog.* and bird, cat"):
        as_source(ConcatDataset([ImageFolder(folder, allow_empty=True), ImageFolder(other)]))


def pairs() -> TensorDataset:
    return TensorDataset(torch.arange(24.0).reshape(6, 4), torch.arange(6) % 3)


def collated(items: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.stack([10 * sample for sample, _ in items]), torch.tensor([t for _, t in items])


@pytest.mark.parametrize("loader", [DataLoader(pairs()), DataLoader(pairs(), 4, shuffle=True)])
def test_a_loader_stands_for_its_data_set(loader: Any) -> None:
    samples, targets = as_source(loader, classes=3).get_items(indices(5, 1))
    assert samples.tolist() == [[20, 21, 22, 23], [4, 5, 6, 7]] and targets.tolist() == [2, 1]


def test_a_loader_of_its_own_collate_function() -> None:
    loader = DataLoader(pairs(), batch_size=4, collate_fn=collated)
    samples, targets = as_source(loader, classes=3).get_items(indices(5, 1))
    assert samples.tolist() == [[200, 210, 220, 230], [40, 50, 60, 70]]
    assert targets.tolist() == [2, 1]


def test_a_loader_gives_no_samples_that_its_sampler_leaves_out() -> None:
    source = as_source(DataLoader(pairs(), sampler=SubsetRandomSampler([4, 1])), classes=3)
    assert len(source) == 2 and source.get_items(indices(0, 1))[1].tolist() == [1, 1]
    assert len(as_source(DataLoader(pairs(), sampler=RandomSampler(pairs())), classes=3)) == 6
    part: Any = DistributedSampler(pairs(), num_replicas=2, rank=0)
    with pytest.raises(CodecError, match="DistributedSampler, which may leave samples out"):
        as_source(DataLoader(pairs(), sampler=part), classes=3)


def test_hugging_face_dataset_of_images() -> None:
    features = hf.Features({"img": hf.Image(), "label": hf.ClassLabel(num_classes=7)})
    gray = [Image.fromarray(np.full((3, 3), value, np.uint8)) for value in (5, 6)]
    dataset = hf.Dataset.from_dict({"img": gray, "label": [6, 2]}, features=features)
    source = as_source(dataset)
    samples, targets = source.get_items(indices(0, 1))
    assert source.classes == 7 and samples.shape == (2, 1, 3, 3)
    assert samples[:, 0, 0, 0].tolist() == [5, 6] and targets.tolist() == [6, 2]


def columns(**features: Any) -> Any:
    rows = {
        "scan": [Image.new("L", (3, 3), value) for value in (5, 6)],
        "coarse": [1, 0],
        "finding": [6, 2],
        "place": ["north", "south"],
    }
    kinds = {
        "scan": hf.Image(),
        "coarse": hf.Value("int64"),
        "finding": hf.ClassLabel(names=list("abcdefg")),
        "place": hf.Value("string"),
    }
    return hf.Dataset.from_dict(rows, features=hf.Features(kinds | features))


def test_hugging_face_columns_of_any_name() -> None:
    source = as_source(columns())
    assert isinstance(source, DatasetSource) and source.class_names == tuple("abcdefg")
    samples, targets = source.get_items(indices(0, 1))
    assert samples[:, 0, 0, 0].tolist() == [5, 6] and targets.tolist() == [6, 2]


def test_hugging_face_columns_that_the_user_names() -> None:
    two = columns(coarse=hf.ClassLabel(names=["x", "y"]))
    source = as_source(two, keys=("scan", "coarse"))
    assert isinstance(source, DatasetSource) and source.class_names == ("x", "y")
    assert source.get_items(indices(0, 1))[1].tolist() == [1, 0]
    with pytest.raises(CodecError, match=r"which is the sample\? Pass keys="):
        as_source(two).get_items(indices(0))


def test_hugging_face_formats_and_transforms() -> None:
    tensors = columns().with_format("torch")
    assert as_source(tensors).get_items(indices(1))[0].shape == (1, 1, 3, 3)

    def prepared(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return rows | {"pixel_values": [ToTensor()(scan) for scan in rows["scan"]]}

    source = as_source(columns().with_transform(prepared))
    samples, targets = source.get_items(indices(0, 1))
    assert samples[0, 0, 0, 0] == np.float32(5 / 255) and targets.tolist() == [6, 2]

    def renamed(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"img": rows["scan"], "label": rows["finding"]}

    subset = Subset(columns().with_transform(renamed), [1])
    samples, targets = as_source(subset).get_items(indices(0))
    assert samples[0, 0, 0, 0] == 6 and targets.tolist() == [2]


def test_classes_may_be_a_number() -> None:
    class Counted(TensorDataset):
        classes = 5

    assert as_source(Counted(torch.zeros(3, 2), torch.zeros(3))).classes == 5


@pytest.mark.parametrize("make", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize("pair", [tuple, list])
def test_two_arrays(make: Any, pair: Any) -> None:
    data = pair((make(np.arange(12.0).reshape(6, 2)), make(np.arange(6) % 3)))
    samples, targets = as_source(data).get_items(indices(5, 0))
    assert samples.tolist() == [[10, 11], [0, 1]] and targets.tolist() == [2, 0]


def test_two_arrays_with_names_of_classes() -> None:
    data = (np.zeros((3, 2)), np.array(["cat", "dog", "cat"]))
    source = as_source(data, class_names=["dog", "cat"])
    assert source.classes == 2 and source.get_items(indices(0, 1, 2))[1].tolist() == [1, 0, 1]
    with pytest.raises(CodecError, match="target is 'cat'; pass class_names="):
        as_source(data)


def test_a_list_of_pairs() -> None:
    data = [(np.full((2, 2), k, np.uint8), "ab"[k % 2]) for k in range(4)]
    source = as_source(data, class_names="ab")
    assert source.get_items(indices(3, 2))[1].tolist() == [1, 0]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(torch.zeros(3), 0)])

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("dataset", "told"),
    [
        (Stream(), "Stream without length or items by index; legal: a map-style"),
        (DataLoader(Stream()), "Stream without length or items by index"),
        (iter([(1, 2)]), "list_iterator without length or items by index"),
        ({"train": [], "test": []}, r"keys train, test; legal: .* dataset\['train'\]"),
        ((np.zeros((3, 2)), np.zeros(2)), "2 targets for 3 samples"),
        (DataFrame({"a": [1]}), "DataFrame; legal: two arrays"),
        ((torch.zeros(3, 2).to_sparse(), np.zeros(3)), "sample is sparse"),
    ],
)
def test_what_is_no_data_set_is_refused(dataset: Any, told: str) -> None:
    with pytest.raises(CodecError, match=told):
        as_source(dataset)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"keys": ("img",)}, r"keys = \('img',\) must be two names"),
        ({"keys": "ab"}, "keys = 'ab' must be two names"),
        ({"value_range": (1, 0)}, r"value_range = \(1, 0\) must be two numbers, the lower"),
        ({"value_range": (0, 1, 2)}, r"value_range = \(0, 1, 2\) must be two numbers"),
        ({"value_range": 255}, "value_range = 255 must be two numbers"),
        ({"value_range": (0, float("nan"))}, "must be two numbers"),
        ({"classes": 3, "class_names": ["a", "b"]}, "classes = 3, but there are 2 class names"),
        ({"class_names": ["a", "a"]}, "class names repeat: a, a"),
    ],
)
def test_illegal_arguments_are_named(options: dict[str, Any], told: str) -> None:
    for dataset in (pairs(), (np.zeros((3, 2)), np.zeros(3))):
        with pytest.raises(CodecError, match=told):
            as_source(dataset, **options)


class OwnSource:
    classes, low, high = 2, 0.0, 1.0

    def __len__(self) -> int:
        return 3

    def get_items(self, indices: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
        return np.zeros((len(indices), 2)), np.zeros(len(indices), int)


def test_a_source_of_ones_own_says_itself_what_it_is() -> None:
    source = OwnSource()
    assert as_source(source) is source
    with pytest.raises(CodecError, match="classes, low, high given for OwnSource"):
        as_source(source, classes=3, value_range=(0, 2))


def test_samples_of_several_shapes_are_named(folder: Path) -> None:
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder / "dog" / "2.png")
    with pytest.raises(CodecError, match=r"sample 4 has shape \(3, 9, 9\), sample 0 has"):
        as_source(ImageFolder(folder)).get_items(indices(0, 4))
