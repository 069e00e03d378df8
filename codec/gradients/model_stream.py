"""A model that travels as its changes, one after the other: the arithmetic of both ends.

Client and server add the same decoded change to the same arrays, and so have the same model, bit
for bit; a digest of it says which one that is.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.gradients.joined import decoder_of

VERSION_BYTES = 8

Parameters = list[NDArray[Any]]


def version_of(parameters: Sequence[NDArray[Any]]) -> bytes:
    """Return the digest of a model's trainable parameters, `VERSION_BYTES` long."""
    digest = hashlib.blake2b(digest_size=VERSION_BYTES)
    for values in parameters:
        digest.update(f"{values.dtype.str}{values.shape}".encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.digest()


def changed(parameters: Sequence[NDArray[Any]], data: bytes) -> Parameters:
    """Return parameters with a compressed change added, in their own types.

    Parameters
    ----------
    parameters : sequence of float arrays
    data : bytes
        From any gradient compressor, the tensors joined where it joins them.

    Raises
    ------
    PayloadError
        If the bytes are malformed, or of other shapes.
    """
    parts = decoder_of(data).decompress(data, [values.shape for values in parameters])
    with np.errstate(over="ignore"):
        pairs = zip(parameters, parts, strict=True)
        return [np.asarray(values + part, values.dtype) for values, part in pairs]


def split_versions(versions: bytes) -> list[bytes]:
    """Return digests that travel as one entry."""
    starts = range(0, len(versions), VERSION_BYTES)
    return [versions[start : start + VERSION_BYTES] for start in starts]
