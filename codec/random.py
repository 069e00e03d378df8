"""Counter-based random numbers, the same on both ends for the same key.

Dither must be subtracted by the server exactly as the client added it, without
spending bits. Both ends therefore rebuild it from a key that travels in the header.
Raw Philox words are used, since NumPy promises their stability and not that of
``Generator`` methods.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from codec.errors import CodecError

_GENERATOR, _UNIFORM = 0, 1  # kinds of stream; equal keys do not make them equal


def _bit_generator(kind: int, *key: int) -> np.random.Philox:
    # Two words a number and their count in front: SeedSequence pads with zeros, and so
    # takes (1,) for (1, 0) and (2**32,) for (0, 1).
    words = [kind, len(key)]
    for part in key:
        if not 0 <= part < 2**64:
            raise CodecError(f"key of random numbers holds {part}; legal range: [0, 2**64 - 1]")
        words += [int(part) & 0xFFFFFFFF, int(part) >> 32]
    return np.random.Philox(np.random.SeedSequence(words))


def generator(seed: int, *key: int) -> np.random.Generator:
    """Return a generator keyed by ``(seed, *key)``.

    Parameters
    ----------
    seed : int
        Seed of the run, in [0, 2**64).
    *key : int
        What distinguishes this stream from others (round, client, payload), in [0, 2**64).

    Raises
    ------
    CodecError
        If a part of the key lies outside its range.
    """
    return np.random.Generator(_bit_generator(_GENERATOR, seed, *key))


class Stream(IntEnum):
    """Independent streams of random numbers, the last part of a generator's key."""

    # A client's, beside its main stream (selection, minibatches of streaming): `client_generator`.
    COMPRESSOR = 1
    DROPOUT = 2
    ORDER = 3
    AUGMENTATION = 4
    STATISTICS = 5
    CHECKS = 6
    CODEC = 7
    # The server's: `server_generator`.
    SERVER_NODES = 100
    SERVER_MINIBATCHES = 101
    SERVER_AUGMENTATION = 102
    SERVER_EVALUATION = 103
    SERVER_SCOUT = 104
    SERVER_DOWNLINK = 105
    SERVER_CALIBRATION = 106


_SERVER = 2**32 - 1  # stands where a client's number does


def client_generator(
    seed: int, step: int, client: int, stream: Stream | None = None
) -> np.random.Generator:
    """Return a client's generator of a round, step or epoch; None is its main stream."""
    return generator(seed, step, client, *([] if stream is None else [stream]))


def server_generator(seed: int, server_round: int, stream: Stream) -> np.random.Generator:
    """Return one of the server's generators of a round."""
    return generator(seed, server_round, _SERVER, stream - Stream.SERVER_NODES)


def torch_seed(source: np.random.Generator) -> int:
    """Return a seed for torch's generators, in [0, 2**63)."""
    return int(source.integers(2**63))


def uniform(shape: tuple[int, ...], seed: int, *key: int) -> NDArray[np.float32]:
    """Return float32 uniforms in [0, 1), reproducible across NumPy versions.

    Parameters
    ----------
    shape : tuple of int
        Shape of the result.
    seed, *key : int
        As in `generator`.
    """
    size = int(np.prod(shape))
    words = _bit_generator(_UNIFORM, seed, *key).random_raw((size + 1) // 2)
    # Two 24-bit uniforms from one 64-bit word: a float32 holds no more than 24 bits.
    halves = np.stack(
        [words >> np.uint64(40), (words >> np.uint64(8)) & np.uint64(0xFFFFFF)], axis=1
    )
    return (halves.ravel()[:size].astype(np.float32) * np.float32(2.0**-24)).reshape(shape)
