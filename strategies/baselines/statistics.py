"""When clients of the baselines measure the statistics of batch normalization."""

from dataclasses import dataclass

from codec.options import COUNT, Options, option


@dataclass(frozen=True, kw_only=True)
class StatisticsOptions(Options):
    """When, and on how many minibatches, clients measure batch normalization's statistics."""

    buffers_every: int = option(1, "rounds between two measurements of the statistics", COUNT)
    buffer_batches: int = option(4, "minibatches that a client measures them on", COUNT)
