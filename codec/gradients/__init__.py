"""Gradient compressors: for refinement, and as baselines for sending quantized data."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from codec.errors import CodecError
from codec.gradients.eden import EDEN
from codec.gradients.fp16 import Float16
from codec.gradients.fp32 import Float32
from codec.gradients.power_sgd import PowerSGD
from codec.gradients.qsgd import QSGD
from codec.gradients.rand_k import RandK
from codec.gradients.sign import Sign
from codec.gradients.tensors import MAX_COORDINATES, Array, Memory
from codec.gradients.terngrad import TernGrad
from codec.gradients.top_k import TopK

__all__ = [
    "COMPRESSORS",
    "EDEN",
    "MAX_COORDINATES",
    "QSGD",
    "Float16",
    "Float32",
    "GradientCompressor",
    "Memory",
    "PowerSGD",
    "RandK",
    "Sign",
    "TernGrad",
    "TopK",
    "make_compressor",
]


class GradientCompressor(Protocol):
    """A map from gradients to bytes and back, lossy or not."""

    @property
    def name(self) -> str:
        """What `make_compressor` calls it."""

    @property
    def identifier(self) -> int:
        """What stands for it in the bytes, in [0, 255]; never reused."""

    def compress(
        self, gradient: Sequence[Array], memory: Memory | None, generator: np.random.Generator
    ) -> tuple[bytes, Memory | None]:
        """Return the gradient as bytes, and the memory for the next call.

        Parameters
        ----------
        gradient : sequence of float32 arrays
            One per parameter tensor, any shapes (0-d and empty ones too), finite. Not modified.
        memory : list of float32 arrays, optional
            What the previous call returned; None at first. Unbiased compressors ignore it.
        generator : numpy.random.Generator
            Source of randomness; deterministic compressors draw nothing.

        Returns
        -------
        data : bytes
            Self-contained: shapes and parameters are inside.
        memory : list of float32 arrays, or None
            New arrays; None from compressors without error feedback.

        Raises
        ------
        CodecError
            On a value that is not finite, another dtype or a memory that does not fit.
        """

    def decompress(
        self,
        data: bytes,
        shapes: Sequence[tuple[int, ...]] | None = None,
        limit: int = MAX_COORDINATES,
    ) -> list[Array]:
        """Return the gradient that `data` describes, float32 arrays in their shapes.

        Parameters
        ----------
        data : bytes
            From `compress`, with any options of the same compressor.
        shapes : sequence of tuple of int, optional
            Shapes to insist on.
        limit : int
            Most coordinates accepted; memory and time stay in proportion to it.

        Raises
        ------
        PayloadError
            If the bytes are malformed, too large, or of other shapes.
        """


COMPRESSORS: Mapping[str, Callable[..., GradientCompressor]] = {
    compressor.name: compressor
    for compressor in (Float32, Float16, QSGD, TernGrad, Sign, TopK, RandK, PowerSGD, EDEN)
}


def make_compressor(name: str, **options: Any) -> GradientCompressor:
    """Return a compressor by name.

    Parameters
    ----------
    name : str
        Key of `COMPRESSORS`.
    **options
        Arguments of that compressor.

    Raises
    ------
    CodecError
        If the name, an option or its value is not legal.
    """
    if name not in COMPRESSORS:
        raise CodecError(f"compressor is {name!r}, must be one of {', '.join(COMPRESSORS)}")
    legal = inspect.signature(COMPRESSORS[name]).parameters
    for option in options:
        if option not in legal:
            raise CodecError(f"{name} has no option {option!r}, only {list(legal)}")
    return COMPRESSORS[name](**options)
