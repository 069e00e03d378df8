"""The baselines: gradient compression and federated averaging."""
