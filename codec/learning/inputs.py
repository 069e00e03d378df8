"""What a model sees of a sample, at both ends."""

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from codec.samples.spec import SampleSpec

if TYPE_CHECKING:
    import torch


def sees_unit(spec: SampleSpec, scale: str) -> bool:
    """Whether the model sees samples mapped from their range to [0, 1].

    Parameters
    ----------
    spec : SampleSpec
    scale : str
        As in `codec.messages.ClientOptions`.
    """
    return scale == "unit" or (scale == "auto" and spec.dtype == "uint8")


def model_inputs(
    samples: "NDArray[Any] | torch.Tensor",
    spec: SampleSpec,
    scale: str,
    device: "torch.device | str" = "cpu",
) -> "torch.Tensor":
    """Return what the model sees of samples.

    Parameters
    ----------
    samples : (N, *spec.shape)
        As the data set gives them, or as they decode.
    spec : SampleSpec
    scale : str
        As in `codec.messages.ClientOptions`.
    device : torch.device or str

    Returns
    -------
    Tensor (N, *spec.shape)
        float32, in [0, 1] or in units of the data set; int64 for integers such as tokens.
    """
    import torch

    tensor = torch.as_tensor(samples, device=device)
    if spec.dtype == "int32":
        return tensor.long()
    if sees_unit(spec, scale):
        return (tensor.float() - spec.low) / (spec.high - spec.low)
    return tensor.float()
