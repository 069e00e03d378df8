"""Many files of one kind as one byte string: what they have in common once, lengths coded."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from codec.coding import cursor as wire
from codec.coding.columns import code_columns
from codec.coding.range_coder import BitDecoder, BitEncoder

_HEAD = 1024  # bytes at the start of a file in which common ones are looked for


def pack(files: Sequence[bytes]) -> bytes:
    """Return the files, one at least, as one byte string.

    ::

        head  runs of common and other bytes in it, by turns  the common bytes
        lengths of the rest of each file, entropy-coded  the rests
    """
    head = min(_HEAD, *map(len, files))
    heads = np.frombuffer(b"".join(file[:head] for file in files), np.uint8).reshape(-1, head)
    common = (heads == heads[0]).all(axis=0)
    rests = [part[~common].tobytes() + file[head:] for part, file in zip(heads, files, strict=True)]
    shared: bytes = heads[0, common].tobytes()
    return (
        _pack_runs(common)
        + shared
        + _pack_lengths(np.array(list(map(len, rests))))
        + b"".join(rests)
    )


def unpack(reader: wire.Reader, count: int) -> list[bytes]:
    """Read `count` files that `pack` wrote.

    Raises
    ------
    PayloadError
        If the bytes are truncated or altered.
    """
    common = _unpack_runs(reader)
    template = np.zeros(len(common), np.uint8)
    template[common] = np.frombuffer(reader.take(int(common.sum()), "common bytes"), np.uint8)
    own = int((~common).sum())
    files = []
    for length in _unpack_lengths(reader, count):
        rest = reader.take(int(length), "file")
        template[~common] = np.frombuffer(rest[:own], np.uint8)
        files.append(template.tobytes() + rest[own:])
    return files


def _pack_runs(common: NDArray[np.bool_]) -> bytes:
    edges = np.flatnonzero(np.diff(common, prepend=True, append=not common[-1]))
    runs = np.diff(edges, prepend=0)
    return wire.varint(len(runs)) + b"".join(wire.varint(int(run)) for run in runs)


def _unpack_runs(reader: wire.Reader) -> NDArray[np.bool_]:
    runs = [reader.varint("run") for _ in range(reader.varint("number of runs"))]
    return np.repeat(np.arange(len(runs)) % 2 == 0, runs)


def _pack_lengths(lengths: NDArray[np.int64]) -> bytes:
    smallest = int(lengths.min())
    width = int(lengths.max() - smallest).bit_length()
    coder = BitEncoder()
    code_columns(coder, width, len(lengths), 1, (lengths - smallest).reshape(-1, 1))
    coded = coder.finish()
    return wire.varint(smallest) + bytes([width]) + wire.varint(len(coded)) + coded


def _unpack_lengths(reader: wire.Reader, count: int) -> NDArray[np.int64]:
    smallest, width = reader.varint("smallest length"), reader.byte("width")
    coded = reader.take(reader.varint("size of the lengths"), "lengths")
    return code_columns(BitDecoder(coded), width, count, 1, None)[:, 0] + smallest
