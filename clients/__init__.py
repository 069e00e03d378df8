"""The client's side: score, select, quantize and send local samples; the rivals' clients beside it.

Nothing here imports torch unless a model is needed.
"""

from clients.candidates import draw_minibatch
from clients.gradient_client import GradientInstruction, train_gradient
from clients.handler import train
from clients.instruction import Instruction
from clients.local_training import LocalInstruction, train_local
from clients.source import ArraySource, SampleSource, as_source, source_spec

__all__ = [
    "ArraySource",
    "GradientInstruction",
    "Instruction",
    "LocalInstruction",
    "SampleSource",
    "as_source",
    "draw_minibatch",
    "source_spec",
    "train",
    "train_gradient",
    "train_local",
]
