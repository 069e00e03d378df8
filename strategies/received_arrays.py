"""Arrays of Flower's own records, read without trusting a byte of them.

``numpy.load`` believes what a file says of itself: a header of 60 bytes makes it allocate
terabytes, a zip archive is unpacked, and a header that is no Python literal raises whatever the
parser raises. Here an array must be of the very type, shape and size that the server has sent, and
its header is one that NumPy writes; nothing else is opened.
"""

import math
import re
from collections.abc import Mapping

import numpy as np
from flwr.app import Array
from numpy.typing import NDArray

from strategies.received import BadReply, require_moderate

_MAGIC = b"\x93NUMPY"
_LENGTH_BYTES = {1: 2, 2: 4, 3: 4}  # of the header's length, by version
_LONGEST_HEADER = 4096
_STYPE = "numpy.ndarray"
_SIDE = "(?:0|[1-9][0-9]*)"
_HEADER = re.compile(
    r"\{'descr': '(?P<descr>[<>|=]?[a-z][0-9]+)', 'fortran_order': (?P<fortran>True|False), "
    rf"'shape': \((?P<shape>|{_SIDE},|{_SIDE}(?:, {_SIDE})+)\), \}} *\n?"
)


def read_array(name: str, array: Array, like: Array) -> NDArray[np.generic]:
    """Return an array of the type and shape of another.

    Parameters
    ----------
    name : str
        For the error.
    array : Array
        As it came.
    like : Array
        As the server sent it.

    Raises
    ------
    BadReply
        If it is any other.
    """
    expected, shape = np.dtype(like.dtype), tuple(like.shape)
    if array.stype != _STYPE:
        raise BadReply("record", f"array {name!r} is stored as {array.stype!r:.50}, not {_STYPE!r}")
    data = array.data
    start, header = _header(name, data)
    found = _HEADER.fullmatch(header)
    if found is None:
        raise BadReply("record", f"array {name!r} has no header that NumPy writes: {header!r:.100}")
    sides = tuple(int(side) for side in found["shape"].replace(",", " ").split())
    if found["descr"].lstrip("=") != expected.str or sides != shape:
        told = f"{found['descr']} of shape {sides}"
        raise BadReply("shape", f"{name!r} is {told:.100}, not {expected.str} of {shape}")
    size = math.prod(shape) * expected.itemsize
    if len(data) - start != size:
        raise BadReply("record", f"array {name!r} holds {len(data) - start} bytes, not {size}")
    flat: NDArray[np.generic] = np.frombuffer(data, expected, offset=start)
    return flat.reshape(shape, order="F" if found["fortran"] == "True" else "C")


def _header(name: str, data: bytes) -> tuple[int, str]:
    """Return where the values begin, and the text that says what they are."""
    version = data[len(_MAGIC)] if len(data) > len(_MAGIC) else 0
    width = _LENGTH_BYTES.get(version)
    if not data.startswith(_MAGIC) or width is None:
        raise BadReply("record", f"array {name!r}: {len(data)} bytes that are no NumPy array")
    place = len(_MAGIC) + 2
    length = int.from_bytes(data[place : place + width], "little")
    start = place + width + length
    if length > _LONGEST_HEADER or start > len(data):
        raise BadReply("record", f"array {name!r}: header of {length} bytes in {len(data)}")
    return start, data[place + width : start].decode("latin1")


def read_arrays(record: Mapping[str, Array], sent: Mapping[str, Array]) -> int:
    """Return the bytes of a model in a reply.

    Raises
    ------
    BadReply
        If it holds other arrays than were sent, or numbers that no training gets to.
    """
    if record.keys() != sent.keys():
        odd = sorted(record.keys() ^ sent.keys())
        raise BadReply(
            "record", f"the model's arrays differ from those sent, as in {odd[0]!r:.100}"
        )
    for name, own in sent.items():
        array = read_array(name, record[name], own)
        require_finite(name, array)
        require_moderate("too-large", array, name)
    return sum(len(array.data) for array in record.values())


def require_finite(name: str, array: NDArray[np.generic]) -> None:
    """Raise `BadReply` if an array holds NaN or infinity."""
    if array.dtype.kind in "fc" and not np.isfinite(array).all():
        raise BadReply("not-finite", f"{name!r} holds NaN or infinity")
