"""The client's side: score, select, quantize and send local samples; the rivals' clients beside it.

Nothing here imports torch unless a model is needed.
"""

from clients.baselines.gradient import GradientInstruction, train_gradient
from clients.baselines.local_training import LocalInstruction, train_local
from clients.candidates import draw_minibatch
from clients.handler import train
from clients.instruction import Instruction
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
