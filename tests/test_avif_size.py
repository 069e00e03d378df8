"""An AVIF file declares one size, its stream may hold another: it is known before decoding."""

import io
import struct
import tracemalloc

import numpy as np
import pytest

from codec import PayloadError
from codec.samples.avif_size import frame_sizes
from codec.samples.pictures import avif, load_avif

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(1, 1), (64, 64), (300, 17, 3), (1000, 64), (28, 1984, 3)])
@pytest.mark.parametrize("quality", [1, 50, 100])
def test_files_of_our_own(shape: tuple[int, ...], quality: int) -> None:
    for picture in (np.zeros(shape, np.uint8), RNG.integers(0, 256, shape).astype(np.uint8)):
        file = avif(picture, quality, 6)
        assert set(frame_sizes(file)) == {(shape[1], shape[0])}
        assert load_avif(file, shape).shape == shape


def belied(side: int, declared: int) -> bytes:
    """A black picture whose container says that it is smaller."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.zeros((side, side), np.uint8)).save(file, "AVIF", quality=1, speed=10)
    data = file.getvalue()
    place = data.index(b"ispe") + 8
    return data[:place] + struct.pack(">II", declared, declared) + data[place + 8 :]


def test_a_frame_larger_than_its_container_says() -> None:
    bomb = belied(2048, 64)
    assert len(bomb) < 1000 and frame_sizes(bomb) == [(2048, 2048)]
    tracemalloc.start()
    with pytest.raises(PayloadError, match=r"\(2048, 2048\).*declared: \(64, 64\)"):
        load_avif(bomb, (64, 64))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_altered_files_are_refused_or_read() -> None:
    file = avif(RNG.integers(0, 256, (16, 16, 3)).astype(np.uint8), 50, 6)
    refused = 0
    for _ in range(2000):
        altered = bytearray(file)
        for _ in range(RNG.integers(1, 4)):
            altered[RNG.integers(0, len(altered))] = RNG.integers(0, 256)
        end = len(altered) if RNG.random() < 0.5 else RNG.integers(1, len(altered))
        try:
            frame_sizes(bytes(altered[:end]))
        except PayloadError:
            refused += 1
    assert 0 < refused < 2000


@pytest.mark.parametrize("kind", [b"moov", b"idat", b"meta"])
def test_containers_of_more_than_a_picture(kind: bytes) -> None:
    file = avif(np.zeros((16, 16), np.uint8), 50, 6)
    with pytest.raises(PayloadError, match="AVIF file"):
        frame_sizes(file + struct.pack(">I", 16) + kind + bytes(8))
