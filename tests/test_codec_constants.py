"""`python -m sim.codec_constants`: what it changes is what is measured."""

import numpy as np
import pytest

from codec.samples.block_dct.steps import coefficient_steps
from codec.samples.block_dct.transform import transform_for
from sim.codec_constants import CONSTANTS, changed


@pytest.mark.parametrize("name", ["_UPPER_HALF", "_UPPER_THIRD"])
def test_a_changed_band_changes_the_steps_for_as_long(name: str) -> None:
    level = transform_for((3, 32, 32), 8)
    (constant,) = (constant for constant in CONSTANTS if constant.name == name)
    usual = coefficient_steps(level, 0.5, 0.55, 2.0).copy()
    with changed(constant, 0.5):
        assert not np.array_equal(coefficient_steps(level, 0.5, 0.55, 2.0), usual)
    assert np.array_equal(coefficient_steps(level, 0.5, 0.55, 2.0), usual)
