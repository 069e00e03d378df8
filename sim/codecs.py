"""Codec ``auto`` beside the block transform and image codecs: bytes, error, and what is learned.

Every method codes the same images of a data set at several rates. Bytes are those of serialized
payloads, with labels and everything around, and for ``auto`` with what the client tells of its
choice. ``accuracy`` is that of a small network trained on the decoded images, tested on originals.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from codec import CodecError, CodecOptions, SampleSpec, decode_samples, encode_samples
from codec.random import generator
from codec.samples.choice import IMAGE_CANDIDATES, TRANSFORM, choose, codecs_at_hand, samples_to_try
from codec.samples.options import AUTO
from codec.samples.task_error import task_error
from fl_app.data import DataError, load
from sim import tables
from sim.jsonl import append_points, read_points

RESULTS = "codecs.jsonl"
PATIENT = f"{AUTO}, speed 0"  # what `avif_speed` 0 makes of auto
_STEPS = (0.25, 0.5, 0.8)
# So close that what is between them is right to a percent.
_QUALITIES = (1, 2, 4, 6, 8, 11, 14, 17, 20, 23, 27, 30, 34, 38, 42, 46, 50)
_TRAINED_ON = (1, 8, 20, 34, 50)
TRAINING_STEPS = 300
_BATCH, _RATE = 64, 0.1  # of training
_MARGIN = 0.003  # of accuracy: what is no further below is equal
_MOST_ABOVE = 1.02  # of the best image codec's bytes

Echo = Callable[[str], None]
Labelled = tuple[NDArray[np.uint8], NDArray[np.int64]]


@dataclass(frozen=True)
class DataSet:
    """Images that are coded.

    Attributes
    ----------
    name : str
    load : callable
        ``split -> (images, labels)``, uint8 (N, C, H, W) and int64 (N,).
    images : int
        How many are coded.
    train_on : int
        How many are coded to train on; 0: none.
    """

    name: str
    load: Callable[[str], Labelled]
    images: int
    train_on: int = 0


@dataclass(frozen=True)
class Method:
    """A way to code images.

    Attributes
    ----------
    name : str
    options : tuple of CodecOptions
        One for each rate.
    is_image_codec : bool
    trains : bool
        Whether networks are trained on what it decodes to.
    """

    name: str
    options: tuple[CodecOptions, ...]
    is_image_codec: bool = True
    trains: bool = False


def _files(name: str, codec: str, avif_speed: int = 3, *, trains: bool = False) -> Method:
    made = (CodecOptions(codec, quality=q, avif_speed=avif_speed) for q in _QUALITIES)
    return Method(name, tuple(made), trains=trains)


# The dearest come last.
METHODS = (
    _files("jpeg", "jpeg"),
    _files("webp", "webp"),
    _files("jpeg-xl", "jpeg-xl"),
    _files("avif, speed 6", "avif", 6, trains=True),
    Method(
        TRANSFORM,
        tuple(CodecOptions(TRANSFORM, step=s) for s in _STEPS),
        is_image_codec=False,
        trains=True,
    ),
    _files("avif, speed 3", "avif", 3, trains=True),
    Method(AUTO, tuple(CodecOptions(step=s) for s in _STEPS), is_image_codec=False, trains=True),
    _files("avif, speed 0", "avif", 0),
    Method(
        PATIENT,
        tuple(CodecOptions(step=s, avif_speed=0) for s in _STEPS),
        is_image_codec=False,
    ),
)


@dataclass(frozen=True)
class Point:
    """What a method makes of a data set at one rate.

    Attributes
    ----------
    dataset, method : str
    seed : int
        Of the images and of training.
    knob : float
        Step, or quality of a file.
    codec : str
        What coded the images.
    images : int
    bytes_per_sample : float
        All in, serialized.
    psnr : float
        dB.
    task_error : float
        See `codec.samples.task_error`.
    accuracy : float or None
        On original test images, a fraction; None where nothing was trained.
    """

    dataset: str
    method: str
    seed: int
    knob: float
    codec: str
    images: int
    bytes_per_sample: float
    psnr: float
    task_error: float
    accuracy: float | None = None


def data_sets(
    fashion_mnist: str = "", cifar10: str = "", tiny_imagenet: str = "", photographs: str = ""
) -> list[DataSet]:
    """Return the data sets: the digits of the installation, and those whose folder is named."""

    def of(name: str, folder: str = "", side: int = 64) -> Callable[[str], Labelled]:
        def images(split: str) -> Labelled:
            found = load(name, split, folder, side)
            return found.samples, found.labels

        return images

    known = [DataSet("mnist", of("mnist5k"), 64, 1000)]
    if fashion_mnist:
        known.append(DataSet("fashion-mnist", of("fashion-mnist", fashion_mnist), 64, 1000))
    if cifar10:
        known.append(DataSet("cifar10", of("cifar10", cifar10), 64, 1000))
    if tiny_imagenet:
        known.append(DataSet("tiny-imagenet", of("imagefolder", tiny_imagenet, 64), 32))
    if photographs:
        known.append(DataSet("photographs", of("imagefolder", photographs, 224), 8))
    return known


def measure_codecs(
    out: Path,
    datasets: Iterable[DataSet],
    seeds: int,
    echo: Echo,
    methods: Sequence[Method] = METHODS,
) -> None:
    """Code and train whatever the results do not hold yet, and append it to them.

    Parameters
    ----------
    out : Path
        Folder of ``codecs.jsonl``.
    datasets : iterable of DataSet
    seeds : int
        Of training; 0: none.
    echo : callable
        Called with each line of progress.
    methods : sequence of Method
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / RESULTS
    lacking = {"jpeg-xl"} - set(codecs_at_hand())
    there = _there(datasets, echo)
    known = {_key(point) for point in read_points(path, Point)}
    for trains, method in ((trains, method) for trains in (False, True) for method in methods):
        if method.options[0].codec in lacking or (trains and not method.trains):
            continue
        for dataset, train in there:
            numbers = range(seeds if dataset.train_on else 0) if trains else range(1)
            rates = [o for o in method.options if not trains or _is_trained_on(o)]
            for seed, options in ((seed, o) for seed in numbers for o in rates):
                if (dataset.name, method.name, seed, _knob(options), trains) not in known:
                    point = _measured(dataset, train, method, options, seed, trains=trains)
                    append_points(path, [point])
                    echo(_line(point))


def _there(datasets: Iterable[DataSet], echo: Echo) -> list[tuple[DataSet, Labelled]]:
    """Return the data sets that are there, with the images to code."""
    found = []
    for dataset in datasets:
        try:
            found.append((dataset, dataset.load("train")))
        except DataError as error:
            echo(f"{dataset.name} is left out: {error}")
    return found


def _knob(options: CodecOptions) -> float:
    if options.codec in (AUTO, TRANSFORM):
        return round(options.step, 6)  # of a float32
    return options.quality


def _is_trained_on(options: CodecOptions) -> bool:
    return options.codec in (AUTO, TRANSFORM) or options.quality in _TRAINED_ON


def _key(point: Point) -> tuple[str, str, int, float, bool]:
    is_trained = point.accuracy is not None
    return point.dataset, point.method, point.seed, point.knob, is_trained


def _line(point: Point) -> str:
    accuracy = "" if point.accuracy is None else f", {100 * point.accuracy:.2f} %"
    return (
        f"{point.dataset}, {point.method}, {point.knob:g}: {point.codec}, "
        f"{point.bytes_per_sample:.1f} B, {point.psnr:.2f} dB, "
        f"error {point.task_error:.1f}{accuracy}"
    )


def _measured(
    dataset: DataSet,
    train: Labelled,
    method: Method,
    options: CodecOptions,
    seed: int,
    *,
    trains: bool,
) -> Point:
    count = dataset.train_on if trains else dataset.images
    chosen = generator(seed).permutation(len(train[0]))[:count]
    chosen = chosen[np.argsort(train[1][chosen], kind="stable")]
    images, labels = np.ascontiguousarray(train[0][chosen]), train[1][chosen].astype(np.int64)
    classes = int(train[1].max()) + 1
    coded, told = coded_by(options, images, labels, classes)
    spec = SampleSpec(images.shape[1:], classes=classes, codec=coded)
    payload = encode_samples(images, labels, spec)
    decoded = decode_samples(payload).samples
    error = float(np.square(decoded - images.astype(np.float32)).mean())
    accuracy = None
    if trains:
        accuracy = trained_accuracy(decoded, labels, classes, dataset.load("test"), seed)
    return Point(
        dataset.name,
        method.name,
        seed,
        _knob(options),
        coded.codec,
        count,
        (len(payload.to_bytes()) + told) / count,
        10 * math.log10(255**2 / max(error, 1e-9)),
        task_error(images, decoded),
        accuracy,
    )


def coded_by(
    options: CodecOptions, images: NDArray[np.uint8], labels: NDArray[np.int64], classes: int
) -> tuple[CodecOptions, int]:
    """Return what a client codes with, and the bytes in which it tells of a choice."""
    if options.codec != AUTO:
        return options, 0
    some = generator(1).permutation(len(images))[: samples_to_try(images.shape[1:])]
    some = some[np.argsort(labels[some], kind="stable")]
    spec = SampleSpec(images.shape[1:], classes=classes, codec=CodecOptions(TRANSFORM))
    choice, _ = choose(images[some], labels[some], spec, options, IMAGE_CANDIDATES)
    return choice.options(options), len(choice.to_bytes())


def trained_accuracy(
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    classes: int,
    test: Labelled,
    seed: int,
) -> float:
    """Return the accuracy of the app's small network after some steps on decoded images."""
    import torch
    from torch.nn import functional

    from fl_app.models import build_model

    model = build_model("small-resnet", images.shape[1:], classes, seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), _RATE, 0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, TRAINING_STEPS)
    seen, targets = torch.from_numpy(images / np.float32(255)), torch.from_numpy(labels)
    order = generator(seed, 2)
    for _ in range(TRAINING_STEPS):
        batch = torch.from_numpy(order.integers(0, len(images), _BATCH))
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(seen[batch]), targets[batch])
        loss.backward()  # type: ignore[no-untyped-call]  # torch's has no types
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        parts = (
            model(torch.from_numpy(part.astype(np.float32) / 255)).argmax(1).numpy()
            for part in np.array_split(test[0], max(1, len(test[0]) // 500))
        )
        return float((np.concatenate(list(parts)) == test[1]).mean())


# The report


@dataclass(frozen=True)
class Verdict:
    """A rate of ``auto`` beside the image codec that needs the fewest bytes for the same.

    Attributes
    ----------
    dataset : str
    by : str
        What is the same: ``task error`` or ``accuracy``.
    auto : Point
    best : str
        The image codec; empty where none comes to the same within the rates that were tried.
    ratio : float
        Bytes of ``auto`` over its bytes; NaN where there is none.
    """

    dataset: str
    by: str
    auto: Point
    best: str
    ratio: float

    @property
    def is_above(self) -> bool:
        """Whether auto is further above the best image codec than it should be."""
        return self.ratio > _MOST_ABOVE


def verdicts(points: Sequence[Point]) -> Iterator[Verdict]:
    """Yield a verdict for each data set and rate, by task error and, if trained, by accuracy.

    By accuracy, both sides are at their cheapest rate that is as accurate.
    """
    names = {method.name for method in METHODS if method.is_image_codec}
    for dataset in dict.fromkeys(point.dataset for point in points):
        own = [point for point in points if point.dataset == dataset]
        coded = [point for point in own if point.accuracy is None]
        files = _by_method(point for point in coded if point.method in names)
        for auto in (point for point in coded if point.method in (AUTO, PATIENT)):
            needed = {name: bytes_at(auto.task_error, curve) for name, curve in files.items()}
            yield _verdict("task error", auto, needed)
        trained = _averaged(point for point in own if point.accuracy is not None)
        rivals = _by_method(point for point in trained if point.method in names)
        own_rates = [point for point in trained if point.method == AUTO]
        for auto in own_rates:
            equal = {name: _cheapest(auto, curve) for name, curve in rivals.items()}
            # A coarser rate may be as accurate: then it is what auto needs, too.
            needs = replace(auto, bytes_per_sample=_cheapest(auto, own_rates))
            yield _verdict("accuracy", needs, equal)


def _verdict(by: str, auto: Point, needed: Mapping[str, float]) -> Verdict:
    there = {name: size for name, size in needed.items() if not math.isnan(size)}
    best = min(there, key=lambda name: there[name], default="")
    ratio = auto.bytes_per_sample / there[best] if best else math.nan
    return Verdict(auto.dataset, by, auto, best, ratio)


def bytes_at(error: float, curve: Sequence[Point]) -> float:
    """Return the bytes at which a method has an error, between its points; NaN beyond them."""
    ordered = sorted(curve, key=lambda point: point.task_error)
    errors = [point.task_error for point in ordered]
    if not errors[0] <= error <= errors[-1]:
        return math.nan
    sizes = [math.log(point.bytes_per_sample) for point in ordered]
    return math.exp(float(np.interp(math.log(error), np.log(errors), sizes)))


def _cheapest(auto: Point, curve: Sequence[Point]) -> float:
    """Return the bytes of the cheapest of a method's rates that is as accurate; NaN if none is."""
    least = (auto.accuracy or 0) - _MARGIN
    sizes = [point.bytes_per_sample for point in curve if (point.accuracy or 0) >= least]
    return min(sizes, default=math.nan)


def _by_method(points: Iterable[Point]) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(point.method, []).append(point)
    return found


def _averaged(points: Iterable[Point]) -> list[Point]:
    """Return one point for each rate: means over the seeds."""
    rates: dict[tuple[str, float], list[Point]] = {}
    for point in points:
        rates.setdefault((point.method, point.knob), []).append(point)
    return [_mean(rate) for rate in rates.values()]


def _mean(rate: Sequence[Point]) -> Point:
    return replace(
        rate[0],
        bytes_per_sample=fmean(point.bytes_per_sample for point in rate),
        psnr=fmean(point.psnr for point in rate),
        task_error=fmean(point.task_error for point in rate),
        accuracy=fmean(point.accuracy or 0 for point in rate),
    )


def report(out: Path) -> list[str]:
    """Return the table of the results in a folder, and whether auto is ever too far above.

    Raises
    ------
    CodecError
        If there are none.
    """
    points = read_points(out / RESULTS, Point)
    found = list(verdicts(points))
    if not found:
        raise CodecError(f"{out / RESULTS} has no results of codec auto; leave out --report")
    table = tables.numbers(
        "data set",
        "method",
        "step",
        "auto is",
        "B",
        "dB",
        "equal",
        "best image codec",
        "bytes ratio",
    )
    for verdict in found:
        auto = verdict.auto
        equal = f"error {auto.task_error:.1f}"
        if auto.accuracy is not None:
            equal = f"{100 * auto.accuracy:.2f} %"
        ratio = "" if math.isnan(verdict.ratio) else f"{verdict.ratio:.3f}"
        table.add_row(
            verdict.dataset, auto.method, f"{auto.knob:g}", auto.codec,
            f"{auto.bytes_per_sample:.1f}", f"{auto.psnr:.2f}", equal, verdict.best or "none",
            ratio + "*" * verdict.is_above,
        )  # fmt: skip
    above = [v for v in found if v.is_above]
    where = ", ".join(
        f"{v.auto.method}, {v.dataset} at step {v.auto.knob:g} ({v.by})" for v in above
    )
    most = f"{100 * (_MOST_ABOVE - 1):.0f} %"
    return [
        *tables.lines(table),
        f"auto more than {most} above the best image codec (*): {where or 'never'}",
    ]
