"""Evidence for the constants of the block-transform codec: bytes when each is off by a factor.

``python -m sim.codec_constants --data PATH.npz`` codes the same images with every tunable constant
as it is and scaled, all others untouched. What the contexts are made of changes the bytes alone;
what the quantization steps are made of changes the distortion, too, so those rows say the PSNR,
and the bytes beside those that a plain change of the step takes for the same PSNR. Mind that the
steps were not chosen by PSNR, see `codec.samples.block_dct.steps`. Payloads are of version 6: since
then, a network chooses most contexts of images, see `sim.codec_network`.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from codec import CodecOptions, SampleSpec, encode_samples
from codec.coding.range_coder import Ints
from codec.compilation import compiled
from codec.samples.block_dct import coefficients, prediction, steps
from codec.samples.coding import reconstruct_samples
from fl_app.data import load

Pictures = NDArray[np.uint8]

FACTORS = (0.5, 0.7, 1.4, 2.0)
_VERSION = 6  # of payloads whose contexts these constants choose throughout
RESULTS = Path(__file__).parent / "results" / "codec-constants.jsonl"


def _times(value: Any, factor: float) -> Any:
    """Scale a number (whole ones stay whole), an array, or every value of a table."""
    if isinstance(value, dict):
        return {key: each * factor for key, each in value.items()}
    return max(1, round(value * factor)) if isinstance(value, int) else value * factor


def _power(value: Any, factor: float, pivot: float) -> Any:
    """Raise to the power `factor` what stands to a fixed `pivot`: above one, spread apart."""
    if isinstance(value, dict):
        return {key: _power(each, factor, pivot) for key, each in value.items()}
    return pivot * (value / pivot) ** factor


def _share_exponent(share: Callable[[Ints], Ints], factor: float) -> Any:
    """Scale the exponent of `coefficients._share`; a mean magnitude of one keeps its share."""
    unit = float(share(np.zeros(1, np.int64))[0])
    return lambda scales: unit * (share(scales) / unit) ** factor


@dataclass(frozen=True)
class Constant:
    """Something that was tuned.

    Attributes
    ----------
    name : str
        What tables call it.
    module : module or None
        Where it stands; None for a field of `CodecOptions`.
    attributes : tuple of str
        What is changed together; empty: `name` itself.
    change : callable
        From value and factor to the changed value.
    series : bool
        Measured on rows of the images, as series of one axis, instead of on images.
    """

    name: str
    module: ModuleType | None
    attributes: tuple[str, ...] = ()
    change: Callable[[Any, float], Any] = _times
    series: bool = False

    @property
    def distorts(self) -> bool:
        """Whether it changes what is decoded, not the bytes alone."""
        return self.module in (None, steps)


_SHARPER = partial(_power, pivot=11.0)  # about where the sum of the table stays

CONSTANTS = (
    Constant("_NEIGHBOURS_2D", coefficients, ("_NEIGHBOURS_2D", "_CLOSE")),
    Constant("_NEIGHBOURS_2D ** x", coefficients, ("_NEIGHBOURS_2D", "_CLOSE"), _SHARPER),
    Constant("_NEIGHBOURS_1D", coefficients, ("_NEIGHBOURS_1D", "_CLOSE"), series=True),
    Constant("_NEIGHBOURS_1D ** x", coefficients, ("_NEIGHBOURS_1D", "_CLOSE"), _SHARPER, True),
    Constant("_CLOSE", coefficients),
    Constant("_ACTIVITY", coefficients),
    Constant("_ACTIVITY ** x", coefficients, ("_ACTIVITY",), partial(_power, pivot=1.0)),
    Constant("_CAP", coefficients),
    Constant("_PREDICTED", coefficients),
    Constant("_PRIOR", coefficients),
    Constant("exponent of _share", coefficients, ("_share",), _share_exponent),
    Constant("_MEMORY", coefficients),
    Constant("_SURENESS", coefficients),
    Constant("_DISAGREEING ** x", coefficients, ("_DISAGREEING",), partial(_power, pivot=0.5)),
    Constant("_DISAGREEING_STRENGTH", coefficients),
    Constant("_OCTAVES_PER_BIN", coefficients),
    Constant("_RUNS", coefficients),
    Constant("_CORRELATION ** x", prediction, ("_CORRELATION",), partial(_power, pivot=1.0)),
    Constant("_NOISE", prediction),
    Constant("_NOISE_OF_MEANS", prediction),
    Constant("_HIGHEST_ORDER", prediction),
    Constant("step", None),
    Constant("_UPPER_HALF", steps),
    Constant("_UPPER_THIRD", steps),
    Constant("tilt", None),
    Constant("chroma", None),
)
NEUTRAL = Constant("(as it is)", coefficients)
NEUTRAL_SERIES = Constant("(as it is, series)", coefficients, series=True)


@dataclass(frozen=True)
class Run:
    """One measurement.

    Attributes
    ----------
    data : str
        Name of the file, or of the data set.
    images, per_payload : int
        How many, and how many of them are coded together.
    step : float
        Quantization step, as a fraction of the value range.
    constant : str
        Which was changed.
    factor : float
        By what.
    bytes : int
        Of all sections of values.
    ratio : float
        Over the bytes with all constants as they are.
    psnr : float or None
        dB, where it can differ.
    equal_psnr_ratio : float or None
        Bytes over those of the constants as they are at another step, of the same PSNR.
    """

    data: str
    images: int
    per_payload: int
    step: float
    constant: str
    factor: float
    bytes: int
    ratio: float
    psnr: float | None = None
    equal_psnr_ratio: float | None = None


@contextmanager
def changed(constant: Constant, factor: float) -> Iterator[None]:
    """Let a constant of a module be changed for a while."""
    with ExitStack() as stack:
        stack.callback(_forget)
        for name in constant.attributes or (constant.name,):
            if constant.module is not None and factor != 1:
                value = constant.change(getattr(constant.module, name), factor)
                stack.enter_context(patch.object(constant.module, name, value))
        _forget()
        yield


def _forget() -> None:
    """Drop what was derived from constants and kept."""
    coefficients.layout.cache_clear()
    prediction.regression.cache_clear()
    steps.coefficient_steps.cache_clear()


@dataclass(frozen=True)
class Bench:
    """Images, in payloads.

    Attributes
    ----------
    data : str
    images : uint8 (N, C, H, W)
    per_payload : int
    """

    data: str
    images: Pictures
    per_payload: int

    def measure_all(self, step: float) -> list[Run]:
        """Measure every constant with every factor, at one step."""
        usual = {
            neutral.series: self._measure(neutral, 1.0, step)
            for neutral in (NEUTRAL, NEUTRAL_SERIES)
        }
        runs = [
            self._measure(constant, factor, step, usual[constant.series].bytes)
            for constant in track(CONSTANTS, f"step {step}")
            for factor in FACTORS
        ]
        return _beside_equal_psnr([*usual.values(), *runs])

    def _measure(self, constant: Constant, factor: float, step: float, usual: int = 0) -> Run:
        options = CodecOptions(step=step)
        if constant.module is None:
            value = getattr(options, constant.name)
            options = replace(options, **{constant.name: constant.change(value, factor)})
        with changed(constant, factor), compiled(False):  # kernels have constants of their own
            size = self._size(options, constant.series)
            psnr = self._psnr(options) if constant.distorts or constant is NEUTRAL else None
        return Run(
            data=self.data,
            images=len(self.images),
            per_payload=self.per_payload,
            step=step,
            constant=constant.name,
            factor=factor,
            bytes=size,
            ratio=round(size / (usual or size), 5),
            psnr=psnr,
        )

    def _size(self, options: CodecOptions, series: bool) -> int:
        """Return the bytes of all sections of values."""
        size = 0
        for images in self._payloads():
            samples = _rows(images) if series else images
            spec = SampleSpec(samples.shape[1:], classes=2, codec=options, version=_VERSION)
            payload = encode_samples(samples, np.zeros(len(samples), np.int64), spec)
            size += len(payload.sections["values"])
        return size

    def _psnr(self, options: CodecOptions) -> float:
        """Return the PSNR of the decoded images in dB."""
        spec = SampleSpec(self.images.shape[1:], classes=2, codec=options)
        error = 0.0
        for images in self._payloads():
            decoded = reconstruct_samples(images, spec, (0, 0, 0))
            error += float(np.square(decoded - images).sum(dtype=np.float64))
        return round(float(10 * np.log10(255**2 * self.images.size / error)), 3)

    def _payloads(self) -> Iterator[Pictures]:
        for start in range(0, len(self.images), self.per_payload):
            yield self.images[start : start + self.per_payload]


def _rows(images: Pictures) -> Pictures:
    """(N, C, H, W) -> (N * H, C, W)."""
    return np.ascontiguousarray(images.swapaxes(1, 2)).reshape(-1, images.shape[1], images.shape[3])


def _beside_equal_psnr(runs: Sequence[Run]) -> list[Run]:
    """Set the bytes of runs that distort beside those that another step takes for their PSNR.

    The logarithm of the bytes is a polynomial of the PSNR, as in Bjontegaard (2001, VCEG-M33).
    """
    curve = [(run.psnr, run.bytes) for run in runs if run.constant in ("step", NEUTRAL.name)]
    psnr, size = np.array(curve, np.float64).T
    log_size = np.polynomial.Polynomial.fit(psnr, np.log(size), len(curve) - 1)

    def beside(run: Run) -> Run:
        if run.psnr is None or not psnr.min() <= run.psnr <= psnr.max():
            return run
        usual = float(np.exp(log_size(run.psnr)))
        return replace(run, equal_psnr_ratio=round(run.bytes / usual, 5))

    return [beside(run) for run in runs]


def tables(runs: Sequence[Run]) -> Iterator[Table]:
    """Yield the tables of each step: of bytes alone, then of bytes and distortion."""
    distorting = [constant.name for constant in CONSTANTS if constant.distorts]
    others = [constant.name for constant in CONSTANTS if not constant.distorts]
    for usual in (run for run in runs if run.constant == NEUTRAL.name):
        here = [run for run in runs if run.step == usual.step]
        title = f"{usual.data}, step {usual.step}: {usual.bytes / usual.images:.1f} B an image"
        yield _table(f"{title}; bytes", others, here, lambda run: f"{run.ratio - 1:+.2%}")
        yield _table(
            f"{title}, {usual.psnr} dB; bytes, PSNR, bytes at equal PSNR",
            distorting,
            here,
            partial(_distortion, usual=usual),
        )


def _distortion(run: Run, usual: Run) -> str:
    assert run.psnr is not None and usual.psnr is not None
    equal = "-" if run.equal_psnr_ratio is None else f"{run.equal_psnr_ratio - 1:+.1%}"
    return f"{run.ratio - 1:+.1%} {run.psnr - usual.psnr:+.2f}dB {equal}"


def _table(
    title: str, names: Sequence[str], runs: Sequence[Run], cell: Callable[[Run], str]
) -> Table:
    table = Table("constant", title=title)
    for factor in FACTORS:
        table.add_column(f"x {factor:g}", justify="right")
    for name in names:
        table.add_row(name, *(cell(run) for run in runs if run.constant == name))
    return table


def read_images(file: Path | None, count: int) -> tuple[str, Pictures]:
    """Return the name of the data and a random choice of images, uint8 (N, C, H, W)."""
    if file is None:
        name, images = "mnist5k", load("mnist5k", "train").samples
    else:
        name, images = file.name, np.load(file)["images"]
    chosen = np.random.default_rng(0).permutation(len(images))[:count]
    return name, images[chosen]


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m sim.codec_constants", description=__doc__)
    parser.add_argument(
        "--data", metavar="FILE.npz", type=Path,
        help="file with `images`, uint8 (N, C, H, W) (default: MNIST digits)",
    )  # fmt: skip
    parser.add_argument("--images", metavar="N", type=int, default=1000, help="default: 1000")
    parser.add_argument(
        "--per-payload", metavar="N", type=int, default=100,
        help="images coded together (default: 100)",
    )  # fmt: skip
    parser.add_argument(
        "--steps", metavar="STEP", type=float, nargs="+", default=[0.5, 0.25],
        help="quantization steps, of the value range (default: 0.5 0.25)",
    )  # fmt: skip
    parser.add_argument(
        "--out", metavar="FILE.jsonl", type=Path, default=RESULTS,
        help="default: sim/results/codec-constants.jsonl",
    )  # fmt: skip
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables and write the measurements."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.data and not options.data.is_file():
        parser.error(f"--data: no file {options.data}")
    bench = Bench(*read_images(options.data, options.images), options.per_payload)
    runs = [run for step in options.steps for run in bench.measure_all(step)]
    console = Console()
    for table in tables(runs):
        console.print(table)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("".join(json.dumps(asdict(run)) + "\n" for run in runs))


if __name__ == "__main__":
    main()
