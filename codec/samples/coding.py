"""Samples, labels and weights to a payload and back.

::

    samples -> sample codec -> payload -> bytes
    bytes -> payload -> sample codec -> samples
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.errors import CodecError, PayloadError
from codec.samples.channel_axis import measured_axis
from codec.samples.payload import TARGETS, VALUES, WEIGHTS, SamplePayload
from codec.samples.quantizer import check_range
from codec.samples.sample_codec import Array, Key
from codec.samples.spec import SampleSpec
from codec.samples.spread import ROUNDING
from codec.samples.targets import (
    check_targets,
    decode_targets,
    decode_weights,
    encode_targets,
    encode_weights,
)


@dataclass(frozen=True)
class DecodedSamples:
    """What a payload decodes to.

    Attributes
    ----------
    samples : float32 (N, *shape)
        Reconstructed samples x_hat, in units of the source (0..255 for images in uint8).
    targets : int64 (N,), float32 (N,) or float32 (N, target_size)
        Class labels, single floats, or target vectors.
    weights : float32 (N,)
        Importance weights 1/p; ones where nothing was left out by chance.
    entropy_bits : dict of str to float
        Empirical zero-order entropy of each coded section, in bits: of every coefficient or
        column by itself, side information not counted.
    """

    samples: Array
    targets: NDArray[Any]
    weights: Array
    entropy_bits: dict[str, float]


def encode_samples(
    samples: NDArray[Any],
    targets: NDArray[Any],
    spec: SampleSpec,
    *,
    key: Key = (0, 0, 0),
    inclusion: NDArray[Any] | None = None,
    like: NDArray[Any] | None = None,
) -> SamplePayload:
    """Quantize and code a set of samples.

    Parameters
    ----------
    samples : (N, *spec.shape), of ``spec.dtype``
        Samples in [spec.low, spec.high].
    targets : integer (N,), float32 (N,) or float32 (N, spec.target_size)
        Class labels in [0, spec.classes), single floats, or target vectors.
    spec : SampleSpec
        What the samples are, and how to code them.
    key : (int, int, int)
        Seed, client and payload, each >= 0: key of the random numbers of the quantizer.
    inclusion : integer (N,), optional
        Numerators k, 1..256, of the probability k / 256 with which each sample was kept.
    like : (M, *spec.shape), of ``spec.dtype``, optional
        M >= 1 samples whose spread the step is relative to, if it is relative to that: payloads of
        one data set then have one step. Default: `samples`.

    Returns
    -------
    SamplePayload
        The coded samples.

    Raises
    ------
    CodecError
        If shapes, types or values do not fit `spec`.
    """
    samples, targets = np.asarray(samples), np.asarray(targets)
    _check_samples(samples, spec)
    if like is not None:
        _check_samples(like, spec)
    check_targets(targets, len(samples), spec)
    if not len(samples):
        return SamplePayload(spec, 0, {}, key)
    sections = encode_targets(targets, spec)
    if inclusion is not None:
        sections[WEIGHTS] = encode_weights(np.asarray(inclusion), len(samples))
    sections[VALUES] = spec.sample_codec.encode(samples, spec, key, like)
    return SamplePayload(spec, len(samples), sections, key)


def decode_samples(payload: SamplePayload) -> DecodedSamples:
    """Decode a payload.

    Raises
    ------
    PayloadError
        If a section does not decode to what the spec declares.
    """
    spec, count = payload.spec, payload.count
    if not count:
        targets = np.zeros((0, *spec.target_shape), np.int64 if spec.classes else np.float32)
        return DecodedSamples(np.zeros((0, *spec.shape), "f4"), targets, np.zeros(0, "f4"), {})
    targets, target_bits = decode_targets(payload)
    weights, weight_bits = decode_weights(payload)
    data = payload.sections.get(VALUES, b"")
    values, value_bits = spec.sample_codec.decode(data, count, spec, payload.key)
    if not np.isfinite(values).all():
        raise PayloadError("samples decode to numbers that are not finite")
    check_range(values, spec)
    bits = {TARGETS: target_bits, WEIGHTS: weight_bits}
    if value_bits is not None:
        bits[VALUES] = value_bits
    return DecodedSamples(values, targets, weights, bits)


def reconstruct_samples(
    samples: NDArray[Any], spec: SampleSpec, key: Key, like: NDArray[Any] | None = None
) -> Array:
    """Return what a payload of samples (N, *spec.shape) decodes to, without making one.

    An encoder that needs to know what the server will see is spared the entropy coder. `like` is
    that of `encode_samples`.
    """
    if not len(samples):
        return samples.astype(np.float32)
    return spec.sample_codec.reconstruct(samples, spec, key, like)


def _check_samples(samples: NDArray[Any], spec: SampleSpec) -> None:
    if samples.shape[1:] != spec.shape or samples.dtype != spec.dtype:
        raise CodecError(
            f"samples are {samples.dtype} {samples.shape}; the spec says {spec.dtype} "
            f"(N, {', '.join(map(str, spec.shape))})"
        )
    if not samples.size:
        return
    low, high = samples.min(), samples.max()
    if not (low >= spec.low and high <= spec.high):  # also catches NaN
        raise CodecError(
            f"samples lie in [{low}, {high}]; legal range: [{spec.low}, {spec.high}], no NaN"
        )


def variance_kept(samples: NDArray[Any], decoded: Array) -> float:
    """Return the share of the samples' variance that survives coding, in [0, 1].

    Parameters
    ----------
    samples, decoded : (N, *shape)
        Before and after.

    Returns
    -------
    float
        Mean over the channels, or the columns of a table, that vary at all; 1 if none does, and
        of no samples. So a channel that is erased shows, however small its values are.
    """
    samples = np.asarray(samples)
    if not samples.size:
        return 1.0
    axis = measured_axis(samples)
    original = axis.coded(samples).astype(np.float64)
    error = np.square(original - axis.coded(decoded))
    others = (0, *range(2, original.ndim))
    variance, largest = original.var(axis=others), np.abs(original).max(axis=others)
    there = variance > np.square(ROUNDING * largest)
    shares = np.clip(1 - error.mean(axis=others)[there] / variance[there], 0, 1)
    return float(shares.mean()) if there.any() else 1.0
