"""One item of a data set as arrays, whatever library it comes from.

Nothing here imports torch or Pillow: their objects are known by what they can do.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec import CodecError

SAMPLE_KEYS = (
    "img",
    "image",
    "pixel_values",
    "jpg",
    "jpeg",
    "png",
    "webp",
    "x",
    "features",
    "input_ids",
)
TARGET_KEYS = (
    "label", "labels", "fine_label", "character", "cls", "class", "target", "targets", "y",
)  # fmt: skip
_LARGEST_INTEGER = 1 << 24  # of tokens: what float32 holds exactly


def split_item(item: Any, keys: Sequence[str] = ()) -> tuple[Any, Any]:
    """Return sample and target of an item.

    Parameters
    ----------
    item : (sample, target) or mapping
    keys : (str, str), optional
        Of sample and target in a mapping; by default the first known ones.

    Raises
    ------
    CodecError
        If the item is something else; says what to do.
    """
    if isinstance(item, Mapping):
        if keys:
            missing = [key for key in keys if key not in item]
            if missing:
                raise CodecError(f"item has keys {sorted(item)}, not {', '.join(missing)}")
            return item[keys[0]], item[keys[1]]
        return _known(item, SAMPLE_KEYS, "sample"), _known(item, TARGET_KEYS, "target")
    if isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1]
    found = f"{len(item)} parts" if isinstance(item, tuple | list) else type(item).__name__
    raise CodecError(
        f"item is {found}; legal: a (sample, target) pair, or a mapping. Wrap the data set so that "
        "it gives pairs"
    )


def _known(item: Mapping[str, Any], known: Sequence[str], what: str) -> Any:
    for key in known:
        if key in item:
            return item[key]
    raise CodecError(
        f"item has keys {sorted(item)}; which is the {what}? Pass keys=(sample key, target key)"
    )


def sample_array(value: Any) -> NDArray[Any]:
    """Return a sample as uint8, float32 or, for series of integers, int32.

    Parameters
    ----------
    value : array, tensor, PIL image or nested list of numbers
        8-bit images stay as they are; other images and all floats become float32, in their own
        units; integers in one axis, such as tokens, stay integers.

    Raises
    ------
    CodecError
        If it is nothing of these; says what to do.
    """
    if isinstance(value, Mapping):
        raise CodecError(
            f"sample is a mapping with keys {sorted(value)}: models of several inputs are not "
            "supported. Wrap the data set so that it gives one array"
        )
    if hasattr(value, "getbands"):
        from clients.pictures import picture_array

        return picture_array(value)
    return as_sample_dtype(_numpy(value, "sample"))


def as_sample_dtype(array: NDArray[Any]) -> NDArray[Any]:
    """Return values in the type in which samples are kept; `CodecError` if they are no numbers."""
    kind = array.dtype.kind
    if array.dtype in (np.uint8, np.float32):
        return array
    if kind == "f":
        return array.astype(np.float32)
    if kind not in "iub":
        raise CodecError(f"samples have dtype {array.dtype}; legal: integers, floats and bool")
    if array.ndim != 1 or kind == "b":
        return array.astype(np.float32)
    if array.size and max(int(array.max()), -int(array.min())) > _LARGEST_INTEGER:
        raise CodecError(
            f"integers up to {max(int(array.max()), -int(array.min()))}; legal: up to "
            f"+-{_LARGEST_INTEGER}. Give larger ones as floats"
        )
    return array.astype(np.int32)


def target_array(value: Any, class_names: Sequence[str] = ()) -> NDArray[Any]:
    """Return a target as a 0-d or 1-d array of integers or floats.

    Parameters
    ----------
    value : number, array, tensor, list of numbers, or name of a class
    class_names : sequence of str
        For targets that are names.

    Raises
    ------
    CodecError
        If it is nothing of these; says what to do.
    """
    if isinstance(value, str):
        if not class_names:
            raise CodecError(
                f"target is {value!r}; pass class_names= to say which classes there are"
            )
        if value not in class_names:
            raise CodecError(f"class {value!r} is none of {', '.join(class_names)}")
        return np.asarray(class_names.index(value))
    if isinstance(value, Mapping):
        raise CodecError(
            f"target is a mapping with keys {sorted(value)}, as for detection; legal: a class, a "
            "number, or a vector of numbers"
        )
    array = _numpy(value, "target")
    if array.ndim > 1:
        raise CodecError(
            f"target has shape {array.shape}; legal: a class, a number, or a vector of numbers"
        )
    return array


def _numpy(value: Any, what: str) -> NDArray[Any]:
    if hasattr(value, "detach"):  # a torch tensor
        tensor = value.detach().cpu()
        if getattr(tensor, "is_sparse", False):
            raise CodecError(f"{what} is a sparse tensor; legal: dense ones (.to_dense())")
        value = (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise CodecError(f"{what} is no array of numbers: {error}") from error
    if array.dtype.kind not in "iufb":
        raise CodecError(f"{what} is {type(value).__name__} of {array.dtype}; legal: numbers")
    return array
