"""Codec shared by both ends: samples and gradients to bytes, and back."""

from codec.errors import CodecError, PayloadError
from codec.gradients.compression import COMPRESSIONS, Compression
from codec.gradients.refinement import REFINEMENTS, Refinement
from codec.learning.gradient import (
    Augmentation,
    Criterion,
    batch_gradient,
    batch_losses,
    dropout_seed,
    keyed_augmentation,
    losses_gradient,
    per_sample_criterion,
)
from codec.random import generator
from codec.samples.coding import (
    DecodedSamples,
    decode_samples,
    encode_samples,
    reconstruct_samples,
)
from codec.samples.payload import DecodeLimits, SamplePayload
from codec.samples.spec import CodecOptions, SampleSpec
from codec.samples.targets import INCLUSION_UNIT

__all__ = [
    "COMPRESSIONS",
    "INCLUSION_UNIT",
    "REFINEMENTS",
    "Augmentation",
    "CodecError",
    "CodecOptions",
    "Compression",
    "Criterion",
    "DecodeLimits",
    "DecodedSamples",
    "PayloadError",
    "Refinement",
    "SamplePayload",
    "SampleSpec",
    "batch_gradient",
    "batch_losses",
    "decode_samples",
    "dropout_seed",
    "encode_samples",
    "generator",
    "keyed_augmentation",
    "losses_gradient",
    "per_sample_criterion",
    "reconstruct_samples",
]
