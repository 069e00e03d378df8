"""The server's training on its bank, beside the same training in plain PyTorch."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from fl_app.config import RunConfig
from fl_app.data import Images
from fl_app.models import build_model
from fl_app.small_maps import SmallMapConv2d
from sim import tables
from sim.bench.spread import Spread
from sim.compare.job import machine
from sim.server_alone import make_server
from strategies import SampleBank

# Networks that are worth a server, and one whose steps are so short that whatever is around them
# counts.
MODELS = ("resnet9", "resnet18", "logistic")
_WIDTH, _BATCH = 16, 64


@dataclass(frozen=True)
class Training:
    """Time of an optimizer step.

    Attributes
    ----------
    model : str
    device : str
        A torch device.
    steps : int
        Of one measurement.
    ours, plain : Spread
        Milliseconds a step: of CPU time on the CPU, else of wall time, until the device is done.
    server_vs_plain : Spread
        Ratios of the two, measured one after the other.
    machine : str
    """

    model: str
    device: str
    steps: int
    ours: Spread
    plain: Spread
    server_vs_plain: Spread
    machine: str


def measure(
    images: Images, repeats: int, device: str = "cpu", *, quick: bool = False
) -> Iterator[Training]:
    """Yield the rows of `MODELS`, or in quick runs of the last.

    Parameters
    ----------
    images : Images
        Training data.
    repeats : int
        Measurements of each, >= 1, interleaved; one before them warms up.
    device : str
        A torch device.
    quick : bool
    """
    threads = torch.get_num_threads()
    try:
        for model in MODELS[-1:] if quick else MODELS:
            steps = 60 if model == "logistic" else 10
            yield _measured(config_of(model, steps, device), images, repeats)
    finally:
        torch.set_num_threads(threads)


def config_of(model: str, steps: int, device: str = "cpu") -> RunConfig:
    """Return the run config of a training that either of the two does."""
    values = {
        "model": model,
        "width": _WIDTH,
        "augment": "none",
        "schedule": "constant",
        "server-batch-size": _BATCH,
        "server-steps": steps,
        "threads": 1,
        "device": "cpu",
    }
    return RunConfig.from_run_config(values)


def _measured(config: RunConfig, images: Images, repeats: int) -> Training:
    steps, device = config.server_steps, config.device
    bank = SampleBank()
    bank.add_arrays(images.samples, images.labels, low=0.0, high=255.0)
    server = make_server(config, images.kind, bank)  # it sets the threads of this process
    plain = Plain(config, images)
    ours: list[float] = []
    beside: list[float] = []
    for repeat in range(repeats + 1):
        started = _clock(device)
        server.learn(repeat + 1)
        between = _clock(device)
        plain.train(steps)
        ended = _clock(device)
        if repeat:
            ours.append(1e3 * (between - started) / steps)
            beside.append(1e3 * (ended - between) / steps)
    ratios = Spread.of_ratios(ours, beside)
    own, other = Spread.of(ours), Spread.of(beside)
    return Training(config.model, device, steps, own, other, ratios, machine())


def _clock(device: str) -> float:
    """Return the time, in seconds, when a device has done what it was given."""
    if device == "cpu":
        return time.process_time()
    torch.accelerator.synchronize()
    return time.perf_counter()


class Plain:
    """The loop that one writes for tensors in memory."""

    def __init__(self, config: RunConfig, images: Images) -> None:
        self.pixels = torch.from_numpy(images.samples).to(config.device)
        self.labels = torch.from_numpy(images.labels).to(config.device)
        shape, classes = images.kind.shape, images.kind.classes
        self.model = build_model(config.model, shape, classes, width=config.width, seed=config.seed)
        for layer in self.model.modules():
            if isinstance(layer, SmallMapConv2d):
                layer.__class__ = nn.Conv2d  # type: ignore[assignment]  # as torchvision has it
        self.model.to(config.device)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=True,
        )
        self.batch = config.server_batch_size
        self.generator = torch.Generator().manual_seed(config.seed)

    def train(self, steps: int) -> None:
        """Take steps on minibatches, drawn without replacement."""
        self.model.train()
        order = torch.randperm(len(self.labels), generator=self.generator)
        for start in range(0, steps * self.batch, self.batch):
            batch = order[start : start + self.batch]
            images = self.pixels[batch].float() / 255
            loss = F.cross_entropy(self.model(images), self.labels[batch])
            self.optimizer.zero_grad()
            torch.autograd.backward(loss)
            self.optimizer.step()


def lines(rows: Sequence[Training]) -> list[str]:
    """Return the table of rows, for a terminal."""
    table = tables.numbers("training on the bank", "ms a step", "plain PyTorch", "over plain")
    for row in rows:
        shown = (f"{row.ours.median:.2f}", f"{row.plain.median:.2f}", str(row.server_vs_plain))
        table.add_row(f"{row.model}, {row.device}", *shown)
    return tables.lines(table)


def ratios(row: Training) -> dict[str, Spread]:
    """Return what a figure shows of a row."""
    return {f"a step of {row.model}, {row.device} / plain PyTorch": row.server_vs_plain}
