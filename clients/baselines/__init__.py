"""Clients of the baselines: compressed gradients and local training."""
