"""A data set to the smallest bytes that an image codec makes of it, and back."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec import CodecError, PayloadError
from codec.coding import cursor as wire
from sim.upload.bodies import pack, unpack
from sim.upload.formats import CODECS, LOSSLESS, ImageCodec, codec_named
from sim.upload.sheets import Grid, Images, cut_out, lay_out, sheet_grid

Labels = NDArray[np.int64]

PACKINGS = ("sheet", "files")  # many images as one picture; a file of every image
_MAX_LABEL = (1 << 16) - 1


@dataclass(frozen=True)
class Upload:
    """A client's data as it uploads them.

    Attributes
    ----------
    codec : str
        Of `CODECS`.
    quality : int
        1 to 100, or `LOSSLESS`.
    packing : str
        Of `PACKINGS`.
    data : bytes
        All that the server needs to decode images and labels.
    images : uint8 (N, C, H, W)
        What `data` decodes to: ordered by label, and within a label as they were given.
    labels : int64 (N,)
        Their labels, ascending.
    whole_file_bytes : int
        Sum of the sizes of the codec's files before stripping; labels not counted.
    """

    codec: str
    quality: int
    packing: str
    data: bytes
    images: Images
    labels: Labels
    whole_file_bytes: int


def upload(
    images: Images, labels: NDArray[Any], codec: str, quality: int, packing: str = "sheet"
) -> Upload:
    """Compress a client's images and labels with an image codec.

    The order of a training set carries no information: the images are sorted by label, and
    labels travel as one count per class. What all files have in common is sent once, what can
    be derived is left out; see `sim.upload.containers`.

    Parameters
    ----------
    images : uint8 (N, C, H, W)
        N >= 1; grey, C = 1, or red, green and blue, C = 3.
    labels : integer (N,)
        In [0, 65535].
    codec : str
        Of `CODECS`.
    quality : int
        1 to 100 for a lossy codec, `LOSSLESS` for a lossless one; ``jpeg-xl`` takes both.
    packing : str
        ``files``: every image by itself. ``sheet``: many on one picture, usually half the size
        at low qualities. A sheet has one header and one set of statistics, but prediction
        and interpolation of colour reach across the borders of images.

    Returns
    -------
    Upload
        The bytes and what they decode to.

    Raises
    ------
    CodecError
        If an argument is not legal.
    """
    data, whole_file_bytes = encode(images, labels, codec, quality, packing)
    return Upload(codec, quality, packing, data, *decode(data), whole_file_bytes)


def encode(
    images: Images, labels: NDArray[Any], codec: str, quality: int, packing: str = "sheet"
) -> tuple[bytes, int]:
    """Return the bytes of an upload, and of its files before stripping; arguments as there."""
    image_codec, labels = codec_named(codec), np.asarray(labels)
    _check_images(images, image_codec, codec)
    _check_labels(labels, len(images))
    _check_quality(quality, image_codec, codec)
    if packing not in PACKINGS:
        raise CodecError(f"packing is {packing!r}; legal: {', '.join(PACKINGS)}")
    grid = _grid(image_codec, packing, images.shape)
    pictures = lay_out(images[np.argsort(labels, kind="stable")], grid)
    candidates = []
    for encoder in image_codec.encoders:
        files = [encoder(picture, quality) for picture in pictures]
        candidates.append((pack([image_codec.strip(file) for file in files]), sum(map(len, files))))
    packed, whole_file_bytes = min(candidates, key=lambda candidate: len(candidate[0]))
    counts = np.bincount(labels)
    head = bytes([list(CODECS).index(codec), PACKINGS.index(packing)])
    numbers = (*images.shape[1:], len(counts), *counts.tolist())
    return head + b"".join(map(wire.varint, numbers)) + packed, whole_file_bytes


def decode(data: bytes) -> tuple[Images, Labels]:
    """Rebuild the files from an upload's bytes and decode them.

    Returns
    -------
    images : uint8 (N, C, H, W)
    labels : int64 (N,)
        Ascending.

    Raises
    ------
    PayloadError
        If the bytes are truncated or not of an upload.
    """
    reader = wire.Reader(data)
    index, packing = reader.byte("codec"), reader.byte("packing")
    if index >= len(CODECS) or packing >= len(PACKINGS):
        raise PayloadError(f"unknown codec {index} or packing {packing}")
    codec = list(CODECS.values())[index]
    channels, height, width = (reader.varint(side) for side in ("channels", "height", "width"))
    counts = [reader.varint("count") for _ in range(reader.varint("classes"))]
    labels = np.repeat(np.arange(len(counts)), counts)
    shape = (len(labels), channels, height, width)
    grid = _grid(codec, PACKINGS[packing], shape)
    files = unpack(reader, -(-len(labels) // (grid.rows * grid.columns)))
    reader.finish()
    pictures = [codec.decode(codec.restore(file), channels) for file in files]
    return cut_out(pictures, shape, grid), labels


def _grid(codec: ImageCodec, packing: str, shape: tuple[int, ...]) -> Grid:
    return sheet_grid(codec, *shape[2:]) if packing == "sheet" else Grid(1, 1)


def _check_images(images: Images, codec: ImageCodec, name: str) -> None:
    legal = images.ndim == 4 and images.dtype == np.uint8 and images.shape[1] in (1, 3)
    if not legal or not images.size:
        raise CodecError(
            f"images are {images.dtype} {images.shape}; legal: uint8 (N, 1 or 3, H, W), not empty"
        )
    side = max(images.shape[2:])
    if side > codec.max_side:
        raise CodecError(f"a side is {side} pixels; {name} takes 1 to {codec.max_side}")


def _check_labels(labels: NDArray[Any], count: int) -> None:
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise CodecError(f"labels are {labels.dtype} {labels.shape}; legal: integers ({count},)")
    if labels.min() < 0 or labels.max() > _MAX_LABEL:
        raise CodecError(
            f"labels lie in [{labels.min()}, {labels.max()}]; legal range: [0, {_MAX_LABEL}]"
        )


def _check_quality(quality: int, codec: ImageCodec, name: str) -> None:
    lossy = codec.lossy and 1 <= quality <= 100
    if lossy or (codec.lossless and quality == LOSSLESS):
        return
    legal = ["1 to 100"] * codec.lossy + [f"{LOSSLESS} (lossless)"] * codec.lossless
    raise CodecError(f"quality is {quality}; legal for {name}: {' or '.join(legal)}")
