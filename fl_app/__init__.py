"""Flower app: wires data, models, clients and strategies together."""

from codec.packages import require

require("PIL")
