"""What a model sees of a sample, at both ends."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from codec.samples.spec import SampleSpec

if TYPE_CHECKING:
    import torch

Bounds = tuple[float, float]  # range of the values that is mapped to [0, 1]


def sees_unit(spec: SampleSpec, scale: str) -> bool:
    """Whether the model sees samples mapped from their range to [0, 1].

    Parameters
    ----------
    spec : SampleSpec
    scale : str
        As in `codec.messages.ClientOptions`.
    """
    return sees_floats(spec) and (scale == "unit" or (scale == "auto" and spec.dtype == "uint8"))


def sees_floats(spec: SampleSpec) -> bool:
    """Whether the model sees floats; else integers, such as tokens."""
    return spec.dtype != "int32"


def mapped_range(spec: SampleSpec, scale: str) -> Bounds | None:
    """Return the range that is mapped to [0, 1]; None where samples keep their own units."""
    return (spec.low, spec.high) if sees_unit(spec, scale) else None


def seen_range(spec: SampleSpec, scale: str) -> Bounds:
    """Return the range of the values as the model sees them."""
    return (0.0, 1.0) if sees_unit(spec, scale) else (spec.low, spec.high)


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
    if not sees_floats(spec):
        return tensor.long()
    return in_units(tensor, mapped_range(spec, scale))


def float_inputs(samples: NDArray[Any], spec: SampleSpec, scale: str) -> NDArray[np.float32]:
    """Return what a model of floats sees of samples, as `model_inputs` does, without torch."""
    values, bounds = samples.astype(np.float32), mapped_range(spec, scale)
    if bounds is None:
        return values
    low, high = bounds
    return (values - np.float32(low)) / np.float32(high - low)


def in_units(samples: "torch.Tensor", bounds: Bounds | None) -> "torch.Tensor":
    """Return samples as float32, mapped from a range to [0, 1] if one is given."""
    samples = samples.float()
    if bounds is None:
        return samples
    low, high = bounds
    return (samples - low) / (high - low)
