"""Counter-based random numbers, the same on both ends for the same key.

Dither must be subtracted by the server exactly as the client added it, without
spending bits. Both ends therefore rebuild it from a key that travels in the header.
Raw Philox words are used, since NumPy promises their stability and not that of
``Generator`` methods.
"""

import numpy as np
from numpy.typing import NDArray


def _bit_generator(seed: int, *key: int) -> np.random.Philox:
    return np.random.Philox(np.random.SeedSequence([seed, *key]))


def generator(seed: int, *key: int) -> np.random.Generator:
    """Return a generator keyed by ``(seed, *key)``.

    Parameters
    ----------
    seed : int
        Seed of the run, >= 0.
    *key : int
        What distinguishes this stream from others, each >= 0 (round, client, payload).
    """
    return np.random.Generator(_bit_generator(seed, *key))


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
    words = _bit_generator(seed, *key).random_raw((size + 1) // 2)
    # Two 24-bit uniforms from one 64-bit word: a float32 holds no more than 24 bits.
    halves = np.stack([words >> np.uint64(40), (words >> np.uint64(8)) & np.uint64(0xFFFFFF)], axis=1)
    return (halves.ravel()[:size].astype(np.float32) * np.float32(2.0**-24)).reshape(shape)
