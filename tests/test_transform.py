"""Orthonormal transforms: energy, exact inverses, blocks that do not divide the image."""

import numpy as np
import pytest

from codec.samples.block_dct.transform import Array, dct_matrix, forward, inverse, transform_for

# shape, block: the block divides the sample, so that the transform is a rotation
FITTING = [
    ((1, 8, 8), 0), ((3, 32, 32), 0), ((4, 16, 16), 8), ((3, 28, 20), 28), ((3, 64, 64), 0),
    ((2, 40), 0), ((3, 256), 128), ((1, 12, 6), 6),
]  # fmt: skip
# the last rows and columns of blocks are filled up
PADDED = [
    ((1, 9, 7), 4), ((3, 31, 33), 8), ((4, 5, 5), 2), ((3, 65, 65), 0), ((1, 1, 130), 0),
    ((2, 257), 0), ((3, 100), 7), ((3, 3, 70), 2),
]  # fmt: skip


def samples(shape: tuple[int, ...], count: int = 3) -> Array:
    return np.random.default_rng(0).uniform(-128, 127, (count, *shape)).astype(np.float32)


@pytest.mark.parametrize(("shape", "block"), FITTING)
def test_energy_is_preserved(shape: tuple[int, ...], block: int) -> None:
    given = samples(shape)
    transform = transform_for(shape, block)
    # per sample, not in total only: columns are blocks, those of one sample together
    energy = sum(
        (table.astype(np.float64) ** 2).sum(axis=0).reshape(3, -1).sum(axis=1)
        for table in forward(given, transform)
    )
    expected = (given.reshape(3, -1).astype(np.float64) ** 2).sum(axis=1)
    np.testing.assert_allclose(energy, expected, rtol=1e-5)


@pytest.mark.parametrize(("shape", "block"), FITTING + PADDED)
def test_inverse_is_exact(shape: tuple[int, ...], block: int) -> None:
    given = samples(shape)
    transform = transform_for(shape, block)
    tables = forward(given, transform)
    for level, table in zip(transform.levels, tables, strict=True):
        assert table.dtype == np.float32
        assert table.shape == (level.coefficients, 3 * level.blocks)
    back = inverse(tables, transform)
    assert back.shape == given.shape
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, given, atol=3e-4)


def test_what_blocks_share_is_held_once() -> None:
    flat = np.full((2, 3, 32, 32), 40, np.float32)
    transform = transform_for((3, 32, 32), 8)
    fine, coarse = forward(flat, transform)
    np.testing.assert_allclose(fine, 0, atol=1e-3)
    assert np.count_nonzero(np.abs(coarse) > 1e-3) == 2  # the mean of each image, in luma
    np.testing.assert_allclose(coarse[0], 40 * 32 * np.sqrt(3), rtol=1e-5)


def test_large_image() -> None:
    given = samples((3, 224, 224), 2)
    transform = transform_for(given.shape[1:], 0)
    assert (transform.block_shape, transform.grid) == ((8, 8), (28, 28))
    np.testing.assert_allclose(inverse(forward(given, transform), transform), given, atol=2e-4)


def test_an_error_keeps_its_energy_on_the_way_back() -> None:
    transform = transform_for((3, 16, 16), 8)
    rng = np.random.default_rng(1)
    fine = rng.normal(0, 2, (192, 4 * 5)).astype(np.float32)
    fine[transform.means] = 0
    coarse = rng.normal(0, 2, (12, 5)).astype(np.float32)
    energy = (fine**2).sum() + (coarse**2).sum()
    back = inverse([fine, coarse], transform)
    assert (back**2).sum() == pytest.approx(energy, rel=1e-5)


def test_padding_adds_no_texture() -> None:
    # Repeated edges: a flat image stays flat in every block, also in the partial ones.
    flat = np.full((1, 1, 9, 11), 50, np.float32)
    fine, coarse = forward(flat, transform_for((1, 9, 11), 4))
    np.testing.assert_allclose(fine, 0, atol=1e-4)
    np.testing.assert_allclose(coarse[0], 50 * 4 * 3, rtol=1e-6)  # 3x3 blocks
    np.testing.assert_allclose(coarse[1:], 0, atol=1e-3)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 32, 64, 256])
def test_dct_matrix_is_orthonormal(size: int) -> None:
    matrix = dct_matrix(size)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-12)


def test_dct_of_one_block_against_the_definition() -> None:
    given = samples((1, 4, 6), 1)
    coefficients = forward(given, transform_for((1, 4, 6), 0))[0].reshape(4, 6)
    for u in range(4):
        for v in range(6):
            rows = np.cos(np.pi * u * (2 * np.arange(4) + 1) / 8)
            columns = np.cos(np.pi * v * (2 * np.arange(6) + 1) / 12)
            scale = np.sqrt((1 if u == 0 else 2) / 4) * np.sqrt((1 if v == 0 else 2) / 6)
            expected = scale * rows @ given[0, 0].astype(np.float64) @ columns
            assert coefficients[u, v] == pytest.approx(expected, abs=1e-3)


def test_a_cosine_is_one_coefficient_of_its_series() -> None:
    wave = np.cos(np.pi * 5 * (2 * np.arange(40) + 1) / 80).astype(np.float32)
    coefficients = forward(wave.reshape(1, 1, 40), transform_for((1, 40), 0))[0]
    assert np.abs(coefficients).argmax() == 5
    assert np.delete(np.abs(coefficients), 5).max() < 1e-5


def test_grey_images_have_no_colour() -> None:
    grey = np.repeat(samples((1, 8, 8)), 3, axis=1)
    coefficients = forward(grey, transform_for((3, 8, 8), 0))[0].reshape(3, 64, -1)
    np.testing.assert_allclose(coefficients[1:], 0, atol=1e-4)
    np.testing.assert_allclose(
        coefficients[0],
        np.sqrt(3) * forward(grey[:, :1], transform_for((1, 8, 8), 0))[0],
        atol=1e-3,
    )


@pytest.mark.parametrize(
    ("shape", "block", "block_shape", "grid"),
    [
        ((3, 64, 24), 0, (8, 8), (8, 3)),
        ((3, 65, 6), 0, (8, 6), (9, 1)),
        ((1, 28, 28), 0, (7, 7), (4, 4)),
        ((1, 28, 28), 8, (8, 8), (4, 4)),
        ((1, 28, 32), 0, (8, 8), (4, 4)),
        ((1, 9, 7), 0, (9, 7), (1, 1)),
        ((3, 12, 36), 0, (6, 6), (2, 6)),
        ((3, 224, 224), 0, (8, 8), (28, 28)),
        ((3, 32, 32), 8, (8, 8), (4, 4)),
        ((3, 65, 20), 32, (32, 20), (3, 1)),
        ((1, 5, 5), 256, (5, 5), (1, 1)),
        ((2, 256), 0, (256,), (1,)),
        ((2, 257), 0, (128,), (3,)),
    ],
)
def test_blocks(
    shape: tuple[int, ...], block: int, block_shape: tuple[int, ...], grid: tuple[int, ...]
) -> None:
    transform = transform_for(shape, block)
    assert (transform.block_shape, transform.grid) == (block_shape, grid)


def test_blocks_of_payloads_before_version_7_have_8_pixels() -> None:
    assert transform_for((1, 28, 28), 0, fitting=False).block_shape == (8, 8)


def test_levels_end_with_one_block() -> None:
    for shape, block in FITTING + PADDED:
        levels = transform_for(shape, block).levels
        assert levels[-1].blocks == 1
        assert all(level.blocks > 1 for level in levels[:-1])
    sides = [level.shape[1:] for level in transform_for((3, 224, 224), 0).levels]
    assert sides == [(224, 224), (28, 28), (4, 4)]
