"""What the message handlers share: reading instructions, loading the model, timing."""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields
from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message
from numpy.lib.format import (
    MAGIC_LEN,
    header_data_from_array_1_0,
    read_array_header_1_0,
    read_magic,
    write_array_header_1_0,
)
from numpy.typing import NDArray

from codec import CodecError, CodecOptions

if TYPE_CHECKING:
    from torch import nn

T = TypeVar("T")

_NUMPY = "numpy.ndarray"  # how Flower names arrays in NumPy's own format


def config_record(msg: Message) -> ConfigRecord:
    """Return an instruction's record; `CodecError` if there is none."""
    record = msg.content.get("config")
    if not isinstance(record, ConfigRecord):
        raise CodecError(f"content['config'] must be a ConfigRecord, got {type(record).__name__}")
    return record


def from_record(cls: type[T], record: Mapping[str, Any]) -> T:
    """Make a dataclass from entries named as its fields, in kebab case.

    Parameters
    ----------
    cls : type
        A dataclass whose fields are int, float, str, bool, one of these or None, or
        `CodecOptions` (bytes on the wire).
    record : mapping
        Entries of no meaning to `cls` are left alone.

    Raises
    ------
    CodecError
        On a missing entry, a wrong type or a value that `cls` refuses.
    """
    values, missing = {}, []
    for field in fields(cls):  # type: ignore[arg-type]  # dataclasses only
        key = field.name.replace("_", "-")
        if key in record:
            values[field.name] = _of_type(key, record[key], field.type)
        elif field.default is MISSING:
            missing.append(key)
    if missing:
        raise CodecError(f"instruction lacks {', '.join(sorted(missing))}")
    return cls(**values)


def _of_type(key: str, value: Any, kind: Any) -> Any:
    if kind is CodecOptions:
        return CodecOptions.from_bytes(_of_type(key, value, bytes))
    if kind is float and type(value) is int:
        return float(value)
    legal = get_args(kind) or (kind,)  # int | None: an int, or no entry
    if type(value) not in legal:
        raise CodecError(f"{key} = {value!r} must be of type {legal[0].__name__}")
    return value


def require_range(key: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise `CodecError` with key, value and legal range unless ``low <= value <= high``."""
    if not low <= value <= high:
        raise CodecError(f"{key} = {value} outside [{low:g}, {high:g}]")


def load_model(factory: "Callable[[], nn.Module]", arrays: object) -> "nn.Module":
    """Return the factory's model in the state that the server sent, in training mode.

    The factory may return one and the same model each time. `CodecError` if no state came.
    """
    if not isinstance(arrays, ArrayRecord):
        raise CodecError(
            f"content['arrays'] must be the model's ArrayRecord, got {type(arrays).__name__}"
        )
    import torch

    model = factory()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # only read here
        state = {name: torch.from_numpy(array_view(array)) for name, array in arrays.items()}
    model.load_state_dict(state)
    return model.train()


def array_view(array: Array) -> NDArray[Any]:
    """Return an array as its own ``numpy`` does, but read-only and not copied."""
    data = array.data
    if array.stype != _NUMPY or read_magic(BytesIO(data[:MAGIC_LEN])) != (1, 0):
        return array.numpy()
    start = MAGIC_LEN + 2
    start += int.from_bytes(data[MAGIC_LEN:start], "little")
    shape, fortran_order, dtype = _header(data[:start])
    if dtype.hasobject:
        return array.numpy()  # which refuses it
    values = np.frombuffer(data, dtype, math.prod(shape), start)
    return values.reshape(shape, order="F" if fortran_order else "C")


@lru_cache(maxsize=4096)  # a model's are the same in every round
def _header(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    file = BytesIO(head)
    read_magic(file)
    return read_array_header_1_0(file)


def array_record(arrays: Iterable[NDArray[Any]]) -> ArrayRecord:
    """Return the record that Flower makes of a list of arrays, with one copy instead of three."""
    return ArrayRecord({str(number): _packed(values) for number, values in enumerate(arrays)})


def _packed(values: NDArray[Any]) -> Array:
    values = np.asarray(values, order="C")
    head = BytesIO()
    write_array_header_1_0(head, header_data_from_array_1_0(values))
    data = b"".join((head.getvalue(), values.data))
    return Array(str(values.dtype), values.shape, _NUMPY, data)


def stored_arrays(record: object) -> list[NDArray[Any]] | None:
    """Return the arrays of a record in a client's state, read-only; None without an ArrayRecord."""
    return [*map(array_view, record.values())] if isinstance(record, ArrayRecord) else None


@contextmanager
def timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Add the time of a block to an entry of `seconds`."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
