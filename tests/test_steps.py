"""Where the bits go: which coefficients take a larger step."""

import numpy as np

from codec.samples.block_dct.steps import coefficient_steps
from codec.samples.block_dct.transform import transform_for


def test_upper_half_upper_third_and_colour_detail_are_coarser() -> None:
    fine, means = transform_for((3, 32, 32), 8).levels
    steps = coefficient_steps(fine, 2.0, 0.5, 3.0).reshape(3, 8, 8)
    assert steps[0, 0, 4] == steps[0, 2, 3] == 2.0
    assert steps[0, 0, 5] == steps[0, 3, 3] == steps[0, 1, 5] == 3.0
    assert steps[0, 0, 6] == steps[0, 4, 4] == steps[0, 7, 7] == 4.5
    np.testing.assert_array_equal(steps[1], steps[2])
    assert steps[1, 0, 1] == 6.0 and steps[1, 7, 7] == 13.5
    assert (steps[:, 0, 0] == 2.0).all()
    assert (coefficient_steps(means, 2.0, 0.5, 3.0) == 2.0).all()


def test_neutral_options_take_one_step() -> None:
    assert (coefficient_steps(transform_for((3, 8, 8), 0), 2.0, 0.0, 1.0) == 2.0).all()


def test_colour_is_of_three_channels_only() -> None:
    steps = coefficient_steps(transform_for((4, 8, 8), 0), 1.0, 0.0, 5.0)
    assert (steps == 1.0).all()
