"""One item of a data set as arrays, whatever library it comes from.

Nothing here imports torch or Pillow: their objects are known by what they can do.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec import CodecError

# What a model takes: goes before the image that it was made of.
PREPARED_KEYS = ("pixel_values", "input_ids")
SAMPLE_KEYS = (
    *PREPARED_KEYS, "img", "image", "jpg", "jpeg", "png", "webp", "x", "features",
)  # fmt: skip
TARGET_KEYS = (
    "label", "labels", "fine_label", "character", "cls", "class", "target", "targets", "y",
)  # fmt: skip
# What a model takes beside its sample; without them it would compute something else.
COMPANION_KEYS = (
    "attention_mask", "token_type_ids", "position_ids", "pixel_mask", "decoder_input_ids",
)  # fmt: skip
_LARGEST_INTEGER = 1 << 24  # of tokens: what float32 holds exactly
_SEVERAL_INPUTS = (
    "models of several inputs are not supported; wrap the data set so that it gives one array"
)


class ItemError(CodecError):
    """An item is of no use.

    Parameters
    ----------
    problem : str
        What is wrong with it, what is legal, and what to do.
    reason : str
        Few words under which such items are counted.
    """

    def __init__(self, problem: str, reason: str) -> None:
        super().__init__(problem)
        self.reason = reason


class ItemNotReady(ItemError):
    """An item that cannot be read yet, such as a file that is being written; it is tried again."""


def split_item(item: Any, keys: Sequence[str] = (), likely: Sequence[str] = ()) -> tuple[Any, Any]:
    """Return sample and target of an item.

    Parameters
    ----------
    item : (sample, target) or mapping
    keys : (str, str), optional
        Of sample and target in a mapping; by default the known ones.
    likely : (str, str), optional
        What the data set declares: taken where no `keys` are given, and the item has them.

    Raises
    ------
    ItemError
        If the item is something else; says what to do.
    """
    if isinstance(item, Mapping):
        return _mapped_item(item, keys, likely)
    if isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1]
    found = type(item).__name__
    if isinstance(item, tuple | list):
        found = f"{found} of {len(item)}"
    raise ItemError(
        f"item is a {found}; legal: a (sample, target) pair, or a mapping. Wrap the data set so "
        "that it gives pairs, or pass two arrays (samples, targets)",
        "neither pair nor mapping",
    )


def _mapped_item(
    item: Mapping[str, Any], keys: Sequence[str], likely: Sequence[str]
) -> tuple[Any, Any]:
    if keys:
        missing = [key for key in keys if key not in item]
        if missing:
            raise ItemError(
                f"item has keys {_names(item)}, not {', '.join(missing)}; pass other keys=",
                "without the keys",
            )
        return item[keys[0]], item[keys[1]]
    sample = _sample_key(item, likely[:1])
    beside = [key for key in COMPANION_KEYS if key in item]
    target = _only(item, likely[1:], TARGET_KEYS, "target")
    if beside:
        raise ItemError(
            f"item has {', '.join(beside)} beside {sample}: models of several inputs are not "
            f"supported. Pass keys=({sample!r}, {target!r}) to send {sample} alone",
            "several inputs",
        )
    return item[sample], item[target]


def _sample_key(item: Mapping[str, Any], likely: Sequence[str]) -> str:
    prepared = [key for key in PREPARED_KEYS if key in item]
    return _only(item, prepared or likely, SAMPLE_KEYS, "sample")


def _only(item: Mapping[str, Any], likely: Sequence[str], known: Sequence[str], what: str) -> str:
    """Return the one key of an item that is likely, or else known."""
    found = [key for key in likely if key in item] or [key for key in known if key in item]
    if len(found) == 1:
        return found[0]
    raise ItemError(
        f"item has keys {_names(item)}; which is the {what}? Pass keys=(sample key, target key)",
        f"no known key of the {what}",
    )


def _names(item: Mapping[str, Any]) -> str:
    return ", ".join(sorted(map(str, item)))


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
        raise ItemError(
            f"sample is a mapping with keys {_names(value)}: {_SEVERAL_INPUTS}", "several inputs"
        )
    if isinstance(value, tuple | list) and any(np.ndim(part) for part in _arrays_in(value)):
        raise ItemError(
            f"sample is a {type(value).__name__} of {len(value)} arrays: {_SEVERAL_INPUTS}",
            "several inputs",
        )
    if hasattr(value, "getbands"):
        from clients.pictures import picture_array

        return picture_array(value)
    return as_sample_dtype(numbers(value, "sample"))


def _arrays_in(parts: Sequence[Any]) -> list[Any]:
    return [part for part in parts if hasattr(part, "shape")]


def as_sample_dtype(array: NDArray[Any], axes: int | None = None) -> NDArray[Any]:
    """Return values in the type in which samples are kept.

    Parameters
    ----------
    array : array of numbers
        A sample, or several.
    axes : int, optional
        Of one sample; default: those of the array.

    Raises
    ------
    ItemError
        If they are no numbers, or integers that float32 does not hold.
    """
    kind = array.dtype.kind
    if array.dtype in (np.uint8, np.float32):
        return array
    if kind not in "iufb":
        raise ItemError(
            f"samples have dtype {array.dtype}; legal: integers, floats and bool",
            f"of dtype {array.dtype}",
        )
    if kind in "fb" or (array.ndim if axes is None else axes) != 1:
        with np.errstate(over="ignore"):  # infinite: found to be of no use later
            return array.astype(np.float32)
    return _checked_integers(array).astype(np.int32, copy=False)


def _checked_integers(array: NDArray[Any]) -> NDArray[Any]:
    largest = max(int(array.max()), -int(array.min())) if array.size else 0
    if largest > _LARGEST_INTEGER:
        raise ItemError(
            f"integers up to {largest}; legal: up to +-{_LARGEST_INTEGER}. Give larger ones as "
            "floats",
            "integers too large",
        )
    return array


def target_array(value: Any, class_names: Sequence[str] = ()) -> NDArray[Any]:
    """Return a target as a 0-d or 1-d array of integers or floats.

    Parameters
    ----------
    value : number, array, tensor, list of numbers, or name of a class
    class_names : sequence of str
        For targets that are names.

    Raises
    ------
    ItemError
        If it is nothing of these; says what to do.
    """
    if isinstance(value, str):
        return np.asarray(class_number(value, class_names))
    parts = value if isinstance(value, tuple | list) else (value,)
    if any(isinstance(part, Mapping) for part in parts):
        raise ItemError(
            f"target is a {type(value).__name__}, as for detection; legal: a class, a number, or "
            "a vector of numbers",
            "target of an unknown kind",
        )
    array = numbers(value, "target")
    if array.ndim > 1:
        raise ItemError(
            f"target has shape {array.shape}; legal: a class, a number, or a vector of numbers",
            "target of an unknown kind",
        )
    return array


def class_number(name: str, class_names: Sequence[str]) -> int:
    """Return the number of a class; `ItemError` if there is none of that name."""
    if not class_names:
        raise ItemError(
            f"target is {name!r}; pass class_names= to say which classes there are",
            "target is a name",
        )
    if name not in class_names:
        raise ItemError(
            f"class {name!r} is none of {', '.join(class_names)}; pass class_names= with all",
            f"class {name!r} is none of the class names",
        )
    return list(class_names).index(name)


def numbers(value: Any, what: str) -> NDArray[Any]:
    """Return numbers of any library as an array; `ItemError`, which says `what`, if there are none.

    Parameters
    ----------
    value : number, array, tensor, nested list of numbers
    what : str
        "sample" or "target".
    """
    if hasattr(value, "detach"):  # a torch tensor
        value = value.detach().cpu()
        if str(value.layout) != "torch.strided":
            raise _sparse(what, ".to_dense()")
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    elif hasattr(value, "toarray"):  # of scipy
        raise _sparse(what, ".toarray()")
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise ItemError(
            f"{what} is a {type(value).__name__}, no array of numbers: {error}", f"{what} no array"
        ) from error
    if array.dtype.kind not in "iufb":
        raise ItemError(
            f"{what} is {type(value).__name__} of {array.dtype}; legal: integers, floats and bool",
            f"{what} not of numbers",
        )
    return array


def _sparse(what: str, dense: str) -> ItemError:
    return ItemError(
        f"{what} is sparse; legal: dense arrays. Convert it in the data set: {dense}",
        f"{what} is sparse",
    )
