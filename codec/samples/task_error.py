"""How much a network feels of what a codec does to pictures: the error that ``auto`` compares.

Squared error in the coefficients of orthonormal 8x8 blocks, in luma and two colour differences,
each over its squared relative step. The steps are those of the block transform's defaults, which
say where networks feel an error, see `codec.samples.block_dct.steps`. An error that fades detail
counts three times: to the squared error of each frequency comes twice what its variance over all
blocks has lost, up to the error itself. What fades is missed in every picture, while errors of
either sign partly cancel as a network sees one picture after another.

Evidence: a small ResNet (48 % on CIFAR-10, 76 % on Fashion-MNIST), and the divergence of its
predictions on 256 test images from those on the originals. Bytes of others over the block
transform's at equal divergence, at equal error of this kind, and at equal PSNR, for steps 0.5, 0.8
and 1.2 on CIFAR-10:

============  ================  ================  ================
codec         divergence        this error        PSNR
============  ================  ================  ================
AVIF speed 6  1.20, 1.19, 1.29  1.14, 1.26, 1.29  0.99, 1.00, 0.96
AVIF speed 3  1.46, 1.44, 1.64  1.44, 1.57, 1.62  0.90, 0.89, none
WebP          1.90, 2.21, 2.69  1.70, 2.01, none  1.22, none, none
============  ================  ================  ================

For steps 0.2 and 0.3 on Fashion-MNIST: speed 6 0.47 and 0.54 by divergence, 0.71 and 0.73 by this
error, 0.59 and 0.62 by PSNR; speed 3 0.42 and 0.46, 0.65 and 0.68, 0.52 and 0.53. Without the lost
variance, AVIF at speed 3 would be ahead on CIFAR-10, too (0.93 to 1.00).
"""

import numpy as np
from numpy.typing import NDArray

from codec.samples.block_dct.steps import coefficient_steps
from codec.samples.block_dct.transform import forward, transform_for
from codec.samples.options import CodecOptions

BLOCK = 8
_FADED = 2  # times that what has faded counts besides
_CHUNK = 1 << 20  # values that are transformed at a time


def task_error(samples: NDArray[np.uint8], decoded: NDArray[np.float32]) -> float:
    """Return how much a network feels of what pictures have become.

    Parameters
    ----------
    samples : uint8 (N, C, H, W)
        N >= 1; 1 or 3 channels.
    decoded : float32 (N, C, H, W)
        What became of them.

    Returns
    -------
    float
        Mean over the coefficients, in squared units of the samples, at relative steps from 1
        upwards; 0 for pictures that are as they were.
    """
    steps = _relative_steps(samples.shape[1])
    rows = max(1, _CHUNK // samples[0].size)
    # Sums over the blocks: of squared errors; of coefficients and of squares, before and after.
    squared = np.zeros(len(steps))
    sums, squares = np.zeros((2, len(steps))), np.zeros((2, len(steps)))
    blocks = 0
    for start in range(0, len(samples), rows):
        part = slice(start, start + rows)
        before = _coefficients(samples[part].astype(np.float32))
        after = _coefficients(decoded[part].astype(np.float32))
        squared += np.square(before - after).sum(axis=1)
        for number, table in enumerate((before, after)):
            sums[number] += table.sum(axis=1)
            squares[number] += np.square(table).sum(axis=1)
        blocks += before.shape[1]
    variance = squares / blocks - np.square(sums / blocks)
    error = squared / blocks
    faded = np.clip(variance[0] - variance[1], 0, error)
    return float(((error + _FADED * faded) / np.square(steps)).mean())


def _relative_steps(channels: int) -> NDArray[np.float64]:
    """Return the step of each coefficient of a block, as a multiple of the smallest."""
    defaults = CodecOptions()
    block = transform_for((channels, BLOCK, BLOCK), BLOCK)
    steps = coefficient_steps(block, 1.0, defaults.tilt, defaults.chroma)
    return steps[:, 0].astype(np.float64)


def _coefficients(pictures: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the coefficients of all blocks of pictures (N, C, H, W), float64 (C * 64, blocks).

    Pictures are continued at the far edges to whole blocks.
    """
    count, channels, height, width = pictures.shape
    edges = ((0, 0), (0, 0), (0, -height % BLOCK), (0, -width % BLOCK))
    padded = np.pad(pictures, edges, mode="edge")
    high, wide = padded.shape[2] // BLOCK, padded.shape[3] // BLOCK
    cut = padded.reshape(count, channels, high, BLOCK, wide, BLOCK).transpose(0, 2, 4, 1, 3, 5)
    blocks = np.ascontiguousarray(cut.reshape(-1, channels, BLOCK, BLOCK))
    tables = forward(blocks, transform_for((channels, BLOCK, BLOCK), BLOCK))
    return tables[0].astype(np.float64)
