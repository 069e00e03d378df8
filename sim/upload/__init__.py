"""The rival of learning from our codec: upload every sample once with an image codec."""

from sim.upload.formats import CODECS, LOSSLESS
from sim.upload.rates import RatePoint, rate_distortion
from sim.upload.transfer import PACKINGS, Upload, decode, upload

__all__ = [
    "CODECS",
    "LOSSLESS",
    "PACKINGS",
    "RatePoint",
    "Upload",
    "decode",
    "rate_distortion",
    "upload",
]
