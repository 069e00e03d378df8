"""The error that a network feels: squared error where it is felt, and what fades twice."""

import numpy as np
import pytest
from images import fields

from codec import CodecOptions
from codec.samples.block_dct.transform import dct_matrix
from codec.samples.task_error import task_error

GREY, COLOUR = fields(6, (1, 24, 24)), fields(6, (3, 24, 24))
LUMA = np.array([1.0, 1.0, 1.0]) / np.sqrt(3)
CHROMA = np.array([1.0, 0.0, -1.0]) / np.sqrt(2)


def wave(row: int, column: int, height: float = 10.0) -> np.ndarray:
    """A wave of every 8x8 block of 24x24 pixels, of one coefficient; its sign alternates."""
    basis = np.outer(dct_matrix(8)[row], dct_matrix(8)[column])
    signs = (-1.0) ** np.arange(9).reshape(3, 3)
    return height * np.kron(signs, basis)


@pytest.mark.parametrize("pictures", [GREY, COLOUR])
def test_pictures_as_they_were_have_none(pictures: np.ndarray) -> None:
    assert task_error(pictures, pictures.astype(np.float32)) == 0


@pytest.mark.parametrize(
    ("row", "column", "step"),
    [(0, 0, 1.0), (1, 2, 1.0), (4, 2, 1.55), (3, 3, 1.55), (7, 0, 1.55**2), (7, 7, 1.55**2)],
)
def test_each_frequency_counts_by_the_default_steps(row: int, column: int, step: float) -> None:
    flat = np.full((4, 1, 24, 24), 128, np.uint8)
    decoded = flat + wave(row, column).astype(np.float32)
    assert task_error(flat, decoded.astype(np.float32)) == pytest.approx(
        100 / step**2 / 64, rel=1e-3
    )


def test_fine_colour_counts_less_and_mean_colour_does_not() -> None:
    flat = np.full((4, 3, 24, 24), 128, np.uint8)

    def of(direction: np.ndarray, row: int, column: int) -> float:
        change = direction[:, None, None] * wave(row, column)
        return task_error(flat, (flat + change).astype(np.float32))

    chroma = CodecOptions().chroma
    assert of(CHROMA, 1, 1) == pytest.approx(of(LUMA, 1, 1) / chroma**2, rel=1e-3)
    assert of(CHROMA, 0, 0) == pytest.approx(of(LUMA, 0, 0), rel=1e-3)


def test_what_fades_counts_three_times() -> None:
    """Half of a wave gone is an error of a quarter of its energy; as much again would be none."""
    before = np.round(128 + wave(1, 0, 160.0))[None, None].astype(np.uint8)
    other = 2.0 * before - np.round(128 + wave(1, 0, 80.0))  # as far away, and higher
    faded = task_error(before, np.round(128 + wave(1, 0, 80.0))[None, None].astype(np.float32))
    raised = task_error(before, other.astype(np.float32))
    assert faded == pytest.approx(3 * raised, rel=0.02)


def test_it_grows_with_noise_of_either_kind() -> None:
    noise = np.random.default_rng(0).standard_normal(COLOUR.shape).astype(np.float32)
    errors = [task_error(COLOUR, COLOUR + scale * noise) for scale in (1.0, 2.0, 4.0)]
    assert errors == sorted(errors)
    assert errors[2] == pytest.approx(16 * errors[0], rel=0.1)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 17, 40), (3, 8, 8)])
def test_sides_need_not_be_whole_blocks(shape: tuple[int, int, int]) -> None:
    pictures = fields(3, shape)
    coarse = (pictures // 16 * 16 + 8).astype(np.float32)
    assert 0 < task_error(pictures, coarse) < 16**2


def test_it_does_not_depend_on_how_many_pictures_are_taken_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    coarse = (COLOUR // 16 * 16 + 8).astype(np.float32)
    whole = task_error(COLOUR, coarse)
    monkeypatch.setattr("codec.samples.task_error._CHUNK", 1)
    assert task_error(COLOUR, coarse) == pytest.approx(whole)
