"""The interface of a sample codec."""

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from codec.samples.options import CodecOptions
    from codec.samples.spec import SampleSpec

Array = NDArray[np.float32]
Key = tuple[int, ...]


class SampleCodec(Protocol):
    """A map from the samples of a payload to bytes and back, lossy or not.

    The mirror of `codec.gradients.GradientCompressor`. Labels, weights, header and checksum are
    the payload's; see `codec.samples.payload`.
    """

    @property
    def name(self) -> str:
        """What the option ``codec`` calls it."""

    @property
    def identifier(self) -> int:
        """What stands for it in the bytes, in [1, 255]; never reused."""

    @property
    def uses(self) -> tuple[str, ...]:
        """Fields of `CodecOptions` that it reads; they travel in this order."""

    @property
    def lossless(self) -> bool:
        """Whether decoded samples are those that were encoded."""

    def is_unbiased(self, options: "CodecOptions") -> bool:
        """Whether the decoded sample's expectation is the sample itself."""

    def needs_key(self, options: "CodecOptions") -> bool:
        """Whether the decoder needs the key of the random numbers."""

    def check(self, spec: "SampleSpec") -> None:
        """Raise `CodecError` if samples of a spec cannot be coded; names what is legal."""

    def decoded_values(self, spec: "SampleSpec") -> int:
        """Numbers that the decoder holds for one sample."""

    def encode(
        self,
        samples: NDArray[Any],
        spec: "SampleSpec",
        key: Key,
        like: NDArray[Any] | None = None,
    ) -> bytes:
        """Return samples as bytes.

        Parameters
        ----------
        samples : (N, *spec.shape), of ``spec.dtype``
            N >= 1; in [spec.low, spec.high].
        spec : SampleSpec
        key : (int, int, int)
            Seed, client and payload: key of random numbers.
        like : (M, *spec.shape), of ``spec.dtype``, optional
            M >= 1 samples whose spread the step is relative to, where it is relative to that; by
            default `samples`.

        Raises
        ------
        CodecError
            If the samples cannot be coded with these options.
        """

    def decode(
        self, data: bytes, count: int, spec: "SampleSpec", key: Key
    ) -> tuple[Array, float | None]:
        """Return the samples in what `encode` returned, and their empirical entropy.

        Returns
        -------
        samples : float32 (count, *spec.shape)
            In units of the source.
        entropy : float or None
            Zero-order entropy of the coded symbols in bits; None where there is none to count.

        Raises
        ------
        PayloadError
            If the bytes do not decode to samples of the spec.
        """

    def reconstruct(
        self,
        samples: NDArray[Any],
        spec: "SampleSpec",
        key: Key,
        like: NDArray[Any] | None = None,
    ) -> Array:
        """Return what the bytes of `encode` decode to, spared the entropy coder if possible."""
