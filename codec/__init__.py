"""Codec shared by both ends: samples and gradients to bytes, and back."""

from codec.compression import COMPRESSIONS, Compression
from codec.errors import CodecError, PayloadError
from codec.gradient import (
    Augmentation,
    Criterion,
    batch_gradient,
    batch_losses,
    dropout_seed,
    keyed_augmentation,
    losses_gradient,
    per_sample_criterion,
)
from codec.payload import DecodeLimits, SamplePayload
from codec.random import generator
from codec.refinement import REFINEMENTS, Refinement
from codec.samples import (
    DecodedSamples,
    decode_samples,
    encode_samples,
    reconstruct_samples,
)
from codec.spec import CodecOptions, SampleSpec
from codec.targets import INCLUSION_UNIT

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
