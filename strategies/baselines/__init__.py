"""The baselines: gradient compression and federated averaging."""

from strategies.baselines.fed_avg import CompressedFedAvg
from strategies.baselines.gradient_compression import GradientCompression

__all__ = ["CompressedFedAvg", "GradientCompression"]
