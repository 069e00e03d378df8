"""Bytes against error of the image codecs, and of ours."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec import CodecOptions, SamplePayload, SampleSpec, decode_samples, encode_samples
from sim.upload.sheets import Images
from sim.upload.transfer import decode, encode

Setting = tuple[str, int] | tuple[str, int, str] | CodecOptions


@dataclass(frozen=True)
class RatePoint:
    """A codec at one setting.

    Attributes
    ----------
    codec : str
        Of `sim.upload.CODECS`, or ``ours``.
    setting : str
        Quality and packing, or the options of ours that are not the defaults.
    bytes_per_sample : float
        Labels and everything shared included.
    psnr : float
        Of all pixels together, dB; infinite without an error.
    seconds_per_sample : float
        Time to encode; of JPEG three times, see `ImageCodec.encoders`.
    """

    codec: str
    setting: str
    bytes_per_sample: float
    psnr: float
    seconds_per_sample: float


def rate_distortion(
    images: Images, labels: NDArray[Any], settings: Iterable[Setting]
) -> list[RatePoint]:
    """Measure codecs on one client's data.

    Parameters
    ----------
    images : uint8 (N, C, H, W)
    labels : integer (N,)
    settings : iterable
        Of arguments of `upload` after the labels, (codec, quality) or (codec, quality, packing);
        and of options of our codec.

    Raises
    ------
    CodecError
        If an argument is not legal.
    """
    order = np.argsort(labels, kind="stable")
    images, labels = images[order], labels[order]
    return [_measure(images, labels, setting) for setting in settings]


def _measure(images: Images, labels: NDArray[Any], setting: Setting) -> RatePoint:
    start = time.perf_counter()
    if isinstance(setting, CodecOptions):
        spec = SampleSpec(images.shape[1:], classes=int(labels.max()) + 1, codec=setting)
        data = encode_samples(images, labels, spec).to_bytes()
        seconds = time.perf_counter() - start
        samples = decode_samples(SamplePayload.from_bytes(data)).samples
        decoded = np.round(samples).astype(np.uint8)
        name, text = "ours", _changed(setting)
    else:
        data, _ = encode(images, labels, *setting)
        seconds = time.perf_counter() - start
        decoded, _ = decode(data)
        name, text = setting[0], " ".join(map(str, setting[1:]))
    count = len(images)
    return RatePoint(name, text, len(data) / count, psnr(images, decoded), seconds / count)


def psnr(images: Images, decoded: Images) -> float:
    """Return the peak signal-to-noise ratio in dB of 8-bit images."""
    error = float(np.square(images.astype(np.float32) - decoded).mean(dtype=np.float64))
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def _changed(options: CodecOptions) -> str:
    """Return the step and what else is not the default."""
    default = vars(CodecOptions())
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in vars(options).items()
        if name == "step" or value != default[name]
    )
