"""Codec shared by both ends: samples and gradients to bytes, and back."""

from codec.errors import CodecError, PayloadError
from codec.gradient import batch_gradient
from codec.payload import DecodeLimits, SamplePayload
from codec.random import generator
from codec.samples import DecodedSamples, decode_samples, encode_samples
from codec.spec import CodecOptions, SampleSpec

__all__ = [
    "CodecError",
    "CodecOptions",
    "DecodeLimits",
    "DecodedSamples",
    "PayloadError",
    "SamplePayload",
    "SampleSpec",
    "batch_gradient",
    "decode_samples",
    "encode_samples",
    "generator",
]
