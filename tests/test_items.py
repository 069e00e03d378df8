"""One item of a data set, whatever library it comes from; or one line that says what to do."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import sparse

from clients.items import as_sample_dtype, sample_array, split_item, target_array
from codec import CodecError


class Pair(NamedTuple):
    image: int
    label: int


@pytest.mark.parametrize("item", [(5, 3), [5, 3], Pair(5, 3)])
def test_pairs_are_taken_in_their_order(item: Any) -> None:
    assert split_item(item) == (5, 3)


@pytest.mark.parametrize(
    "item",
    [
        {"img": 5, "label": 3},
        {"image": 5, "character": 3, "writer_id": "f1"},
        {"pixel_values": 5, "image": "as it was", "labels": 3},
        {"jpg": 5, "cls": 3},
        {"img": 5, "fine_label": 3, "coarse_label": 1},
        {"input_ids": 5, "text": "as it was", "label": 3},
        {"x": 5, "y": 3},
    ],
)
def test_known_columns_are_found(item: Any) -> None:
    assert split_item(item) == (5, 3)


def test_the_user_names_columns() -> None:
    item = {"photo": 5, "age": 3, "img": 1, "label": 2, "attention_mask": 0}
    assert split_item(item, ("photo", "age")) == (5, 3)


def test_what_the_data_set_declares_goes_before_known_names_but_not_before_what_is_prepared() -> (
    None
):
    item = {"scan": 5, "img": 1, "finding": 3, "label": 2}
    assert split_item(item, likely=("scan", "finding")) == (5, 3)
    assert split_item({**item, "pixel_values": 7}, likely=("scan", "finding")) == (7, 3)
    assert split_item({"img": 5, "label": 3}, likely=("scan", "finding")) == (5, 3)


@pytest.mark.parametrize(
    ("item", "keys", "told"),
    [
        ({"a": 1, "b": 2}, (), r"keys a, b; which is the sample\? Pass keys=\(sample key"),
        ({"img": 1, "b": 2}, (), r"keys b, img; which is the target\? Pass keys="),
        ({"img": 1, "image": 1, "label": 2}, (), r"which is the sample\? Pass keys="),
        ({"img": 1, "label": 2, "target": 3}, (), r"which is the target\? Pass keys="),
        ({"img": 1, "label": 2}, ("image", "label"), "keys img, label, not image"),
        (
            {"input_ids": 1, "attention_mask": 1, "label": 2},
            (),
            r"attention_mask beside input_ids: .* Pass keys=\('input_ids', 'label'\)",
        ),
        ((1, 2, 3), (), r"a tuple of 3; legal: a \(sample, target\) pair"),
        ((1,), (), "a tuple of 1; legal"),
        (np.zeros(3), (), "a ndarray; legal"),
        (None, (), "a NoneType; legal"),
    ],
)
def test_other_items_are_refused(item: Any, keys: tuple[str, ...], told: str) -> None:
    with pytest.raises(CodecError, match=told):
        split_item(item, keys)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (np.zeros((3, 4, 4), np.uint8), "uint8"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), "uint8"),
        (np.zeros((1, 4, 4), np.uint16), "float32"),
        (np.full((4, 4), -1000, np.int16), "float32"),
        (np.zeros((4, 4, 3), np.int64), "float32"),
        (np.zeros((4, 4), bool), "float32"),
        (np.zeros(5, bool), "float32"),
        (np.zeros(5, np.float16), "float32"),
        (np.zeros(5, np.float64), "float32"),
        (torch.zeros(2, 5, dtype=torch.bfloat16), "float32"),
        (torch.zeros(2, 5, dtype=torch.float16), "float32"),
        (torch.zeros(5, requires_grad=True), "float32"),
        (torch.arange(5), "int32"),
        (np.arange(5, dtype=np.uint16), "int32"),
        (np.arange(5, dtype=np.int8), "int32"),
        (np.arange(5, dtype=np.uint8), "uint8"),
        ([1.5, 2.0], "float32"),
        ([3, 4, 5], "int32"),
        ([np.float64(1.5), np.float64(2)], "float32"),
        ([[0.1, 0.2], [0.3, 0.4]], "float32"),
        (Image.new("L", (4, 3)), "uint8"),
        (Image.fromarray(np.full((3, 4), 4095, np.uint16)), "float32"),
    ],
)
def test_samples_keep_their_values_and_become_one_of_three_types(value: Any, dtype: str) -> None:
    array = sample_array(value)
    assert array.dtype == dtype
    if isinstance(value, np.ndarray):
        np.testing.assert_array_equal(array, value.astype(np.float64))


def test_bfloat16_and_deep_images_keep_their_units() -> None:
    assert sample_array(torch.tensor([[1.5]], dtype=torch.bfloat16)).tolist() == [[1.5]]
    deep = Image.fromarray(np.arange(12, dtype=np.uint16).reshape(3, 4) * 341)
    assert sample_array(deep).max() == 11 * 341 and sample_array(deep).shape == (1, 3, 4)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"left": 1, "right": 2}, "mapping with keys left, right: models of several inputs"),
        ((np.zeros((3, 4)), np.zeros((3, 4))), "tuple of 2 arrays: models of several inputs"),
        ([torch.zeros(3), torch.zeros(5)], "list of 2 arrays: models of several inputs"),
        (torch.zeros(3, 3).to_sparse(), r"sample is sparse; .*\.to_dense\(\)"),
        (torch.eye(3).to_sparse(), r"sample is sparse; .*\.to_dense\(\)"),
        (sparse.eye(3).tocsr(), r"sample is sparse; .*\.toarray\(\)"),
        ("a text", "sample is str of <U6; legal: integers, floats and bool"),
        ([[1, 2], [3]], "no array of numbers"),
        (np.zeros(3, complex), "complex128; legal: integers, floats and bool"),
        (None, "sample is NoneType of object; legal: integers, floats and bool"),
        (np.array([2**24 + 1, 0]), r"integers up to 16777217; legal: up to \+-16777216"),
        (np.array([-(2**31), 0], np.int32), "integers up to 2147483648"),
    ],
)
def test_other_samples_are_refused(value: Any, told: str) -> None:
    with pytest.raises(CodecError, match=told):
        sample_array(value)


def test_a_batch_of_tokens_is_not_an_image() -> None:
    tokens = np.arange(10).reshape(2, 5)
    assert as_sample_dtype(tokens, 1).dtype == np.int32
    assert as_sample_dtype(tokens).dtype == np.float32


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, 3),
        (3.0, 3.0),
        (True, True),
        (np.int64(3), 3),
        (torch.tensor(3), 3),
        (torch.tensor([3]), [3]),
        (np.array([3.0]), [3.0]),
        ([0, 1, 1], [0, 1, 1]),
        (torch.tensor([0.25, 0.75]), [0.25, 0.75]),
        ("cat", 1),
    ],
)
def test_targets_of_every_library(value: Any, expected: Any) -> None:
    assert target_array(value, ("bird", "cat")).tolist() == expected


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"boxes": np.zeros((2, 4))}, "target is a dict, as for detection; legal: a class"),
        ([{"bbox": [1, 2, 3, 4]}], "target is a list, as for detection; legal: a class"),
        (np.zeros((2, 4)), r"target has shape \(2, 4\); legal: a class"),
        ("dog", "class 'dog' is none of bird, cat; pass class_names="),
        (["cat", "bird"], "target is list of <U4; legal: integers, floats and bool"),
        (None, "target is NoneType of object; legal: integers, floats and bool"),
    ],
)
def test_other_targets_are_refused(value: Any, told: str) -> None:
    with pytest.raises(CodecError, match=told):
        target_array(value, ("bird", "cat"))


def test_names_without_classes_say_what_to_pass() -> None:
    with pytest.raises(CodecError, match="target is 'cat'; pass class_names="):
        target_array("cat")


def test_values_beyond_float32_become_infinite_in_silence() -> None:
    array: NDArray[np.float32] = as_sample_dtype(np.array([1e300, 1.0]))
    assert np.isinf(array[0]) and array[1] == 1.0
