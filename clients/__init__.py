"""The client's side: score, select, quantize and send local samples.

Nothing here imports torch unless a model is needed. Clients of the baselines: `clients.baselines`.
"""

from clients.candidates import draw_minibatch
from clients.handler import train
from clients.source import ArraySource, SampleSource, as_source

__all__ = [
    "ArraySource",
    "SampleSource",
    "as_source",
    "draw_minibatch",
    "train",
]
