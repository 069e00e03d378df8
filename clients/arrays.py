"""Models and other arrays in Flower's records, without needless copies."""

import math
import warnings
from collections.abc import Callable, Iterable
from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.lib.format import (
    MAGIC_LEN,
    header_data_from_array_1_0,
    read_array_header_1_0,
    read_magic,
    write_array_header_1_0,
)
from numpy.typing import NDArray

from codec import CodecError
from codec.learning.state import load_state
from codec.messages import ARRAYS

if TYPE_CHECKING:
    from torch import nn

_NUMPY = "numpy.ndarray"  # how Flower names arrays in NumPy's own format


def load_model(factory: "Callable[[], nn.Module]", arrays: object) -> "nn.Module":
    """Return the factory's model in the state that the server sent, in training mode.

    The factory may return one and the same model each time. `CodecError` if no state came, or it
    does not fit.
    """
    if not isinstance(arrays, ArrayRecord):
        raise CodecError(
            f"content['{ARRAYS}'] must be the model's ArrayRecord, got {type(arrays).__name__}"
        )
    import torch

    model = factory()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # only read here
        state = {name: torch.from_numpy(array_view(array)) for name, array in arrays.items()}
    load_state(model, state)
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
    return ArrayRecord({str(number): packed(values) for number, values in enumerate(arrays)})


def packed(values: NDArray[Any]) -> Array:
    """Return values as Flower packs them."""
    values = np.asarray(values, order="C")
    head = BytesIO()
    write_array_header_1_0(head, header_data_from_array_1_0(values))
    data = b"".join((head.getvalue(), values.data))
    return Array(str(values.dtype), values.shape, _NUMPY, data)


def stored_arrays(record: object) -> list[NDArray[Any]] | None:
    """Return the arrays of a record in a client's state, read-only; None without an ArrayRecord."""
    return [*map(array_view, record.values())] if isinstance(record, ArrayRecord) else None
