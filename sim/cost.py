"""What a round costs the device, beside one plain local gradient step on the same model."""

import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients import ArraySource
from clients.client_round import ClientRound
from clients.importance import model_outputs, score
from clients.streaming import streaming_round
from codec import (
    CodecOptions,
    SampleSpec,
    batch_gradient,
    encode_samples,
    generator,
    per_sample_criterion,
)
from codec.gradients import make_compressor
from codec.messages import StreamingRequest
from codec.samples.block_dct.codec import Plan
from fl_app.models import build_model
from sim.resident import resident_peak

LOCAL_STEP = "local gradient step"
IMPORTANCE = "importance"
QUANTIZATION = "quantization"
ENTROPY_CODING = "entropy coding"
# PowerSGD is the compressor of the rounds with refinement, being the cheapest to compute.
ROUNDS: dict[str, dict[str, Any]] = {  # what a whole round does, beside the parts
    "round": {},
    "round with importance": {"importance": "grad-norm", "keep_rate": 0.5},
    "round with refinement": {"refinement": "powersgd"},
    "round with both": {"importance": "grad-norm", "keep_rate": 0.5, "refinement": "powersgd"},
}
COMPRESSION = "compression, "
COMPRESSORS = ("powersgd", "top-k", "rand-k", "fp16", "terngrad", "qsgd", "sign", "eden")
# Most multiples of a local step that a device should pay.
TARGETS = {"round with importance": 0.5, "round with both": 2.2}


@dataclass(frozen=True)
class Case:
    """A model and the minibatch that it is measured with.

    Attributes
    ----------
    model : str
        As in `fl_app.models.build_model`.
    shape : tuple of int
        Of a sample.
    batch_size : int
    step : float
        Quantization step.
    """

    model: str
    shape: tuple[int, ...]
    batch_size: int
    step: float

    @property
    def name(self) -> str:
        """What tables and figures call it."""
        size = "x".join(str(side) for side in self.shape)
        return f"{self.model}, {size}, batch {self.batch_size}"


FULL = (
    Case("resnet18", (3, 32, 32), 32, 0.43),
    Case("resnet18", (3, 32, 32), 128, 0.43),
    Case("resnet18", (3, 96, 96), 32, 0.43),
    Case("small-resnet", (1, 28, 28), 128, 0.6),
)
QUICK = (Case("small-resnet", (1, 28, 28), 16, 0.6),)


@dataclass(frozen=True)
class Cost:
    """Cost of one stage.

    Attributes
    ----------
    case, stage : str
    seconds_per_sample : float
        Median over the repetitions.
    spread : float
        Half the distance between the quartiles, seconds per sample.
    steps : float
        Median time as a multiple of the local gradient step's.
    peak_bytes : int
        How far the stage raised the resident memory of a fresh process that held model and
        samples.
    """

    case: str
    stage: str
    seconds_per_sample: float
    spread: float
    steps: float
    peak_bytes: int


def measure_cost(
    folder: Path,
    cases: tuple[Case, ...] = FULL,
    data_dir: str = "",
    repetitions: int = 15,
    echo: Callable[[str], None] = print,
) -> list[Cost]:
    """Measure every stage of every case; write ``cost.json``, ``cost.txt`` and ``cost.png``.

    Parameters
    ----------
    folder : Path
        Created with its parents.
    cases : tuple of Case
    data_dir : str
        Folder of CIFAR-10, for cases in colour; without one they are measured on digits.
    repetitions : int
        Of each stage, one after the other in turn, so that a slow moment hits all alike.
    echo : callable
        Called with each line.
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    costs: list[Cost] = []
    for case in cases:
        echo(f"{case.name}: {repetitions} repetitions")
        costs += _measure_case(case, data_dir, repetitions)
        for line in _lines([cost for cost in costs if cost.case == case.name]):
            echo(line)
    result = {
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "repetitions": repetitions,
        "targets": TARGETS,
        "costs": [asdict(cost) for cost in costs],
    }
    (folder / "cost.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (folder / "cost.txt").write_text("\n".join(_lines(costs)) + "\n", encoding="utf-8")
    plot_cost(costs, folder / "cost.png")
    return costs


def stages(case: Case, data_dir: str) -> dict[str, Callable[[], object]]:
    """Return what is timed: the parts of a round, whole rounds, and the local step."""
    import torch

    samples, targets = _images(case, data_dir)
    options = CodecOptions(step=case.step)
    spec = SampleSpec(case.shape, "uint8", 0, 255, classes=10, codec=options)
    source = ArraySource(samples, targets, classes=10, low=0, high=255)
    model = build_model(case.model, case.shape, 10, stem="imagenet", seed=0)
    criterion = per_sample_criterion(None)
    twin = build_model(case.model, case.shape, 10, stem="imagenet", seed=0)  # takes the steps
    trained = list(twin.parameters())
    optimizer = torch.optim.SGD(trained, 0.1)
    ones = np.ones(case.batch_size, np.float32)

    def local_step() -> None:
        gradient = batch_gradient(
            model, criterion, samples, targets, ones, spec=spec, batch_size=case.batch_size
        )
        for parameter, part in zip(trained, gradient, strict=True):
            parameter.grad = part
        optimizer.step()

    def importance() -> None:
        score("grad-norm", model_outputs(model, samples, spec), targets)

    def quantization() -> None:
        Plan.of(samples, spec).quantized(samples, spec, (0, 0, 0))

    def round_of(name: str) -> Callable[[], object]:
        request = StreamingRequest(
            server_round=1, codec=options, batch_size=case.batch_size, **ROUNDS[name]
        )
        return lambda: streaming_round(ClientRound(request, 0, source, model))

    gradient = [
        np.random.default_rng(0).normal(0, 1e-3, tuple(parameter.shape)).astype(np.float32)
        for parameter in trained
    ]

    def compression_of(name: str) -> Callable[[], object]:
        compressor = make_compressor(name)
        return lambda: compressor.compress(gradient, None, generator(0))

    return {
        LOCAL_STEP: local_step,
        IMPORTANCE: importance,
        QUANTIZATION: quantization,
        ENTROPY_CODING: lambda: encode_samples(samples, targets, spec).to_bytes(),
        **{name: round_of(name) for name in ROUNDS},
        **{COMPRESSION + name: compression_of(name) for name in COMPRESSORS},
    }


def _images(case: Case, data_dir: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Real images, resized to the case's shape: a codec's time depends on what it codes."""
    from fl_app.data import load

    channels, height, width = case.shape
    # Without photographs, digits repeated over the channels: cheaper to code than photographs.
    dataset = "cifar10" if channels == 3 and data_dir else "mnist5k"
    images = load(dataset, "train", data_dir)
    chosen = images.samples[: case.batch_size].repeat(channels // images.samples.shape[1], axis=1)
    rows = np.arange(height) * chosen.shape[2] // height
    columns = np.arange(width) * chosen.shape[3] // width
    resized = np.ascontiguousarray(chosen[:, :, rows][..., columns])
    return resized, images.labels[: case.batch_size].astype(np.int64)


def _measure_case(case: Case, data_dir: str, repetitions: int) -> list[Cost]:
    work = stages(case, data_dir)
    compressions = {name: f for name, f in work.items() if name.startswith(COMPRESSION)}
    rounds = {name: f for name, f in work.items() if name not in compressions}
    taken = _timed(rounds, repetitions, case.batch_size)
    # Apart: they leave the allocator with nothing that the next stage could use.
    taken |= _timed(compressions, repetitions, case.batch_size)
    # Coding is timed with the quantization before it; what remains is its own.
    pairs = zip(taken[ENTROPY_CODING], taken[QUANTIZATION], strict=True)
    taken[ENTROPY_CODING] = [max(0.0, both - first) for both, first in pairs]
    # A process for each stage, so that its peak is its own; torch is imported once for all.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchvision", __name__])
    local = statistics.median(taken[LOCAL_STEP])
    costs = []
    for name, seconds in taken.items():
        with context.Pool(1) as pool:
            peak = pool.apply(_peak_bytes, (case, data_dir, name))
        low, _, high = statistics.quantiles(seconds, n=4)
        median = statistics.median(seconds)
        costs.append(Cost(case.name, name, median, (high - low) / 2, median / local, peak))
    return costs


def _timed(
    work: dict[str, Callable[[], object]], repetitions: int, batch_size: int
) -> dict[str, list[float]]:
    """Return seconds per sample of each repetition, all functions in turn after a warm-up."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    for function in work.values():
        function()
    for _ in range(repetitions):
        for name, function in work.items():
            start = time.perf_counter()
            function()
            taken[name].append((time.perf_counter() - start) / batch_size)
    return taken


def _peak_bytes(case: Case, data_dir: str, stage: str) -> int:
    function = stages(case, data_dir)[stage]
    with suppress(OSError):  # Linux: forget the peak that setting up has left
        Path("/proc/self/clear_refs").write_text("5")
    before = resident_peak()
    function()
    return max(0, resident_peak() - before)


def _lines(costs: list[Cost]) -> Iterator[str]:
    yield f"{'case':36}{'stage':24}{'ms/sample':>10}{'+/-':>7}{'local steps':>13}{'peak MB':>9}"
    for cost in costs:
        target = TARGETS.get(cost.stage)
        note = "" if target is None else f"  target {target}: {_verdict(cost.steps, target)}"
        yield (
            f"{cost.case:36}{cost.stage:24}{1e3 * cost.seconds_per_sample:10.3f}"
            f"{1e3 * cost.spread:7.3f}{cost.steps:13.2f}{cost.peak_bytes / 1e6:9.1f}{note}"
        )


def _verdict(value: float, target: float) -> str:
    return "met" if value <= target else "missed"


def plot_cost(costs: list[Cost], path: Path) -> None:
    """Plot the time of every stage as a multiple of the local gradient step."""
    from matplotlib.figure import Figure

    cases = list(dict.fromkeys(cost.case for cost in costs))
    names = [name for name in dict.fromkeys(cost.stage for cost in costs) if name != LOCAL_STEP]
    figure = Figure(figsize=(8, 1.2 + 0.45 * len(names)), dpi=150, layout="constrained")
    axes = figure.add_subplot(xlabel="time (local gradient steps on the same model)")
    height = 0.8 / len(cases)
    for number, case in enumerate(cases):
        steps = {cost.stage: cost.steps for cost in costs if cost.case == case}
        places = [row + (number - (len(cases) - 1) / 2) * height for row in range(len(names))]
        axes.barh(places, [steps[name] for name in names], height, label=case)
    for name, target in TARGETS.items():
        row = names.index(name)
        axes.plot([target, target], [row - 0.45, row + 0.45], color="black", linewidth=1.5)
        axes.annotate(f"target {target}", (target, row + 0.44), xytext=(3, 0), va="top",
                      textcoords="offset points", fontsize=8)  # fmt: skip
    axes.axvline(1, color="gray", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, loc="upper right")
    figure.savefig(path)
