"""How a minibatch's gradient is sent: one choice, known to both ends."""

from dataclasses import dataclass

from codec.errors import CodecError
from codec.gradients import GradientCompressor
from codec.gradients.compression import Compression
from codec.gradients.joined import joined
from codec.gradients.majority_vote import Ballot


@dataclass(frozen=True)
class GradientOptions:
    """Compressor of a gradient, and what goes with it.

    Attributes
    ----------
    compression : Compression
        Not "none".
    majority_vote : bool
        Send bare signs, with "sign".
    momentum_correction : float
        In [0, 1): momentum of the client's own velocity, which takes the gradient's place; with
        "top-k" as in deep gradient compression, with `majority_vote` as in Signum.

    Raises
    ------
    CodecError
        On an illegal value, or options that contradict each other.
    """

    compression: Compression
    majority_vote: bool = False
    momentum_correction: float = 0.0

    def __post_init__(self) -> None:
        kind = self.compression.kind
        if not 0 <= self.momentum_correction < 1:
            raise CodecError(f"momentum-correction = {self.momentum_correction} outside [0, 1)")
        if not self.compression:
            raise CodecError("compressor = 'none' sends no gradient; 'fp32' sends it losslessly")
        if self.majority_vote and kind != "sign":
            raise CodecError(f"majority-vote needs compressor sign, not {kind!r}")
        if self.momentum_correction and not (self.majority_vote or kind == "top-k"):
            raise CodecError(
                f"momentum-correction = {self.momentum_correction} needs compressor top-k or "
                f"majority-vote, not {kind!r}"
            )

    def compressor(self) -> GradientCompressor:
        """Return what turns the gradient into bytes and back."""
        compressor = Ballot() if self.majority_vote else self.compression.compressor()
        assert compressor is not None
        return joined(compressor)
