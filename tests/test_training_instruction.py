from typing import Any

import pytest
from clients.training_instruction import TrainingInstruction

from clients import GradientInstruction, LocalInstruction
from codec import CodecError, Compression

BASE = {"server-round": 2, "seed": 7, "batch-size": 8}
GRADIENT = {**BASE, "compressor": "top-k"}
LOCAL = {**BASE, "local-steps": 5, "learning-rate": 0.1}


def test_a_record_is_read() -> None:
    record = {**BASE, "compressor": "qsgd", "compressor-bits": 7, "buffers": 3, "mode": "x"}
    instruction = TrainingInstruction.from_record(record)
    assert instruction.compression == Compression("qsgd", bits=7)
    assert (instruction.server_round, instruction.batch_size, instruction.buffers) == (2, 8, 3)
    assert not TrainingInstruction.from_record(BASE).compression


@pytest.mark.parametrize(
    ("cls", "record", "message"),
    [
        (TrainingInstruction, {**BASE, "server-round": 0}, "server-round = 0"),
        (TrainingInstruction, {**BASE, "seed": -1}, "seed = -1"),
        (TrainingInstruction, {**BASE, "batch-size": 0}, "batch-size = 0"),
        (TrainingInstruction, {**BASE, "buffers": -1}, "buffers = -1"),
        (TrainingInstruction, {**BASE, "compressor": "zip"}, "zip"),
        (TrainingInstruction, {**BASE, "compressor-density": 0.0}, "compressor-density"),
        (GradientInstruction, BASE, "'fp32' sends it losslessly"),
        (GradientInstruction, {**GRADIENT, "momentum-correction": 1.0}, "momentum-correction"),
        (GradientInstruction, {**GRADIENT, "majority-vote": True}, "needs compressor sign"),
        (
            GradientInstruction,
            {**GRADIENT, "compressor": "sign", "momentum-correction": 0.9},
            "needs compressor top-k or majority-vote, not 'sign'",
        ),
        (LocalInstruction, {**LOCAL, "local-steps": 0}, "local-steps = 0"),
        (LocalInstruction, {**LOCAL, "learning-rate": float("nan")}, "learning-rate = nan"),
        (LocalInstruction, {**LOCAL, "momentum": 1.0}, "momentum = 1.0"),
        (LocalInstruction, {**LOCAL, "weight-decay": -0.1}, "weight-decay = -0.1"),
        (LocalInstruction, BASE, "lacks learning-rate, local-steps"),
    ],
)
def test_illegal_instructions_are_named(
    cls: type[TrainingInstruction], record: dict[str, Any], message: str
) -> None:
    with pytest.raises(CodecError, match=message):
        cls.from_record(record)
