"""The client's side: score, select, quantize and send local samples.

Nothing here imports torch unless a model is needed.
"""

from clients.candidates import draw_minibatch
from clients.handler import train
from clients.instruction import Instruction
from clients.source import ArraySource, SampleSource, as_source, source_spec

__all__ = [
    "ArraySource",
    "Instruction",
    "SampleSource",
    "as_source",
    "draw_minibatch",
    "source_spec",
    "train",
]
