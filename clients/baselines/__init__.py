"""Clients of the baselines: compressed gradients and local training."""

from clients.baselines.gradient import train_gradient
from clients.baselines.local_training import train_local

__all__ = ["train_gradient", "train_local"]
