"""Flower app: wires data, models, clients and strategies together."""
