"""Codec shared by both ends: samples and gradients to bytes, and back."""

from codec.packages import MissingPackage, needed_packages

with needed_packages():
    from codec.errors import CodecError, OptionError, PayloadError
    from codec.gradients.compression import Compression
    from codec.gradients.refinement import Refinement
    from codec.learning.criterion import (
        Criterion,
        CriterionError,
        SampleCriterion,
        SampleLosses,
        per_sample_criterion,
    )
    from codec.learning.gradient import (
        Augmentation,
        batch_gradient,
        batch_losses,
        dropout_seed,
        keyed_augmentation,
        losses_gradient,
    )
    from codec.random import generator
    from codec.samples.coding import (
        DecodedSamples,
        decode_samples,
        encode_samples,
        reconstruct_samples,
        variance_kept,
    )
    from codec.samples.options import CodecOptions
    from codec.samples.payload import DecodeLimits, SamplePayload
    from codec.samples.registry import SAMPLE_CODECS
    from codec.samples.sample_codec import SampleCodec
    from codec.samples.spec import SampleSpec
    from codec.samples.targets import INCLUSION_UNIT

__all__ = [
    "INCLUSION_UNIT",
    "SAMPLE_CODECS",
    "Augmentation",
    "CodecError",
    "CodecOptions",
    "Compression",
    "Criterion",
    "CriterionError",
    "DecodeLimits",
    "DecodedSamples",
    "MissingPackage",
    "OptionError",
    "PayloadError",
    "Refinement",
    "SampleCodec",
    "SampleCriterion",
    "SampleLosses",
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
    "variance_kept",
]
