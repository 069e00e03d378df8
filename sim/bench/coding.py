"""What coding costs beside WebP, at equal error: the seconds that the bytes are paid for with."""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec import CodecOptions, SampleSpec, decode_samples, encode_samples
from codec.compilation import compiled, is_compiled
from fl_app.data import Images
from sim import tables
from sim.bench.spread import Spread
from sim.compare.job import machine

Pictures = NDArray[np.uint8]

PAYLOADS = (1, 10, 100, 1000)  # images coded together
COMPILED, NUMPY, WEBP = "dct, compiled", "dct", "WebP"
_STEP = 0.5
_SHORTEST = 20  # images that one timing codes at least, in as many payloads as that takes


@dataclass(frozen=True)
class Timing:
    """CPU time of coding one image, and beside WebP's in the same round.

    Attributes
    ----------
    coder : str
    side, payload : int
        Pixels of a side, images coded together.
    encode, decode : float
        Milliseconds of CPU an image, medians.
    encode_vs_webp, decode_vs_webp : Spread
        Time over WebP's of the same round.
    bytes_per_image, psnr : float
        Of this coder; PSNR in dB.
    machine : str
    """

    coder: str
    side: int
    payload: int
    encode: float
    decode: float
    encode_vs_webp: Spread
    decode_vs_webp: Spread
    bytes_per_image: float
    psnr: float
    machine: str


def measure(images: Images, repeats: int, *, quick: bool = False) -> Iterator[Timing]:
    """Yield the timings of images, of all sizes of payloads that they fill.

    Parameters
    ----------
    images : Images
        The first thousand are coded; in quick runs twenty, ten together at most.
    repeats : int
        Timings of each coder, >= 1, interleaved; one before them warms up.
    """
    some = images.samples[: _SHORTEST if quick else PAYLOADS[-1]]
    for count in PAYLOADS:
        if count <= len(some):
            yield from _of_payload(some[: max(count, _SHORTEST)], count, repeats)


def _of_payload(images: Pictures, count: int, repeats: int) -> Iterator[Timing]:
    dct = SampleSpec(images.shape[1:], classes=1, codec=CodecOptions("dct", step=_STEP))
    goal = _psnr(images, dct, count)
    specs = {WEBP: _webp_of_equal_error(images, goal, count), NUMPY: dct}
    if is_compiled():
        specs[COMPILED] = dct
    seconds: dict[str, list[tuple[float, float]]] = {coder: [] for coder in specs}
    sizes: dict[str, int] = {}
    for repeat in range(repeats + 1):
        for coder, spec in specs.items():  # one after the other, so that all meet the same machine
            with compiled(coder == COMPILED):
                started = time.process_time()
                payloads = [_encoded(part, spec) for part in _parts(images, count)]
                encoded = time.process_time()
                for payload in payloads:
                    decode_samples(payload)
                decoded = time.process_time()
            sizes[coder] = sum(len(payload.to_bytes()) for payload in payloads)
            if repeat:  # the first one warms up
                seconds[coder].append((encoded - started, decoded - encoded))
    for coder, spec in specs.items():
        encode, decode = zip(*seconds[coder], strict=True)
        webp_encode, webp_decode = zip(*seconds[WEBP], strict=True)
        yield Timing(
            coder=coder,
            side=images.shape[-1],
            payload=count,
            encode=round(1e3 * statistics.median(encode) / len(images), 3),
            decode=round(1e3 * statistics.median(decode) / len(images), 3),
            encode_vs_webp=Spread.of_ratios(encode, webp_encode),
            decode_vs_webp=Spread.of_ratios(decode, webp_decode),
            bytes_per_image=round(sizes[coder] / len(images), 2),
            psnr=round(_psnr(images, spec, count), 2),
            machine=machine(),
        )


def _encoded(part: Pictures, spec: SampleSpec) -> Any:
    return encode_samples(part, np.zeros(len(part), np.int64), spec)


def _parts(images: Pictures, count: int) -> list[Pictures]:
    return [images[start : start + count] for start in range(0, len(images), count)]


def _psnr(images: Pictures, spec: SampleSpec, count: int) -> float:
    squared = [
        np.square(decode_samples(_encoded(part, spec)).samples - part.astype(np.float64)).sum()
        for part in _parts(images, count)
    ]
    return float(10 * np.log10(255**2 * images.size / sum(squared)))


def _webp_of_equal_error(images: Pictures, goal: float, count: int) -> SampleSpec:
    """Return WebP at the least quality that comes up to a PSNR, by halving."""

    def spec(quality: int) -> SampleSpec:
        options = CodecOptions("webp", quality=quality)
        return SampleSpec(images.shape[1:], classes=1, codec=options)

    low, high = 0, 100
    while high - low > 1:
        middle = (low + high) // 2
        if _psnr(images, spec(middle), count) >= goal:
            high = middle
        else:
            low = middle
    return spec(high)


def lines(timings: Sequence[Timing]) -> list[str]:
    """Return the table of timings, for a terminal."""
    table = tables.numbers(
        "images together, coder", "encode ms", "over WebP", "decode ms", "over WebP",
        "B an image", "PSNR",
    )  # fmt: skip
    for timing in timings:
        table.add_row(
            f"{timing.payload} of side {timing.side}, {timing.coder}",
            f"{timing.encode:.3f}",
            str(timing.encode_vs_webp),
            f"{timing.decode:.3f}",
            str(timing.decode_vs_webp),
            f"{timing.bytes_per_image:.1f}",
            f"{timing.psnr:.2f}",
        )
    return tables.lines(table)


def ratios(timing: Timing) -> dict[str, Spread]:
    """Return what a figure shows of a row: of the compiled coder, if there is one."""
    if timing.coder != (COMPILED if is_compiled() else NUMPY):
        return {}
    return {
        f"encode {timing.payload} together / WebP": timing.encode_vs_webp,
        f"decode {timing.payload} together / WebP": timing.decode_vs_webp,
    }
