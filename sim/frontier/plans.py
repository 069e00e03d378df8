"""What is on the frontier: data sets, the recipe of their trainings, and the points of each method.

Every point that sends samples is trained by the same recipe, to the end: as many optimizer steps
as `visits` of its number of samples says, which bounds the server's time, and no byte.
"""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import fl_app
from sim.compare.presets import RIVALS
from sim.run_config import ConfigValue

Overrides = Mapping[str, ConfigValue]

OURS, BUDGET, RAW = "ours", "ours, one dial", "original pixels"
LEAST_VISITS, MANY_VISITS = 300_000, 600_000
EPOCHS, FEWER_EPOCHS = 40, 24  # of many visits
# Channels of ResNet-9's first layer: twice as many bring CIFAR-10 2.5 points in 900 steps.
WIDTH, NARROW = 32, 16
# A training that shows what a lever brings is short and narrow, and so is the one beside it.
LEVER_STEPS, LEVERS_BASE = 900, "in 900 steps"
# With fewer samples the two replies that calibrate batch normalization are over 5 % of the bytes.
CALIBRATED = 3_000


def visits(samples: int) -> int:
    """Return how many samples a training looks at in all: 40 epochs, or 24 of many samples."""
    within = min(max(EPOCHS * samples, LEAST_VISITS), MANY_VISITS)
    return max(within, FEWER_EPOCHS * samples)


@dataclass(frozen=True)
class Task:
    """One point to measure, with one seed.

    Attributes
    ----------
    data : str
        Key of `DATA`.
    method : str
        What tables and figures call it.
    config : mapping
        Run-config overrides beside the recipe's: how samples are coded, or the baseline.
    samples : int
        Images that are sent; 0: all, or as many as the budget allows.
    seed : int
    """

    data: str
    method: str
    config: Overrides
    samples: int
    seed: int

    @property
    def title(self) -> str:
        """Name in lines of progress."""
        shown = " ".join(f"{key}={value}" for key, value in self.config.items())
        return f"{self.data}: {self.method}, {self.samples or 'all'} samples, {shown}, seed " + str(
            self.seed
        )


@dataclass(frozen=True)
class Published:
    """A result that others published, and that is not measured here.

    Attributes
    ----------
    name : str
    uplink_bytes : int
    accuracy : float
        A fraction.
    """

    name: str
    uplink_bytes: int
    accuracy: float


@dataclass(frozen=True)
class Data:
    """A data set, and what is measured on it.

    Attributes
    ----------
    dataset : str
        Value of the run-config key.
    title : str
    train : int
        Training images.
    recipe : mapping
        Run-config overrides of all its points.
    ours : tuple of (int, float)
        Images, and quantization step.
    codecs : mapping of str to tuple of (int, int)
        For each image codec its points: images, and quality.
    baselines : mapping of str to mapping
        Run config of methods that send gradients or models, over their whole run.
    budgets : mapping of int to int
        Bytes of the table, and of the dial: about how many samples it will send for them, by which
        its steps are planned.
    goals : mapping of int to float
        Accuracy, a fraction, that is aimed at with so many bytes.
    published : tuple of Published
    levers : mapping of str to mapping
        What our first point is measured without, or with besides, in `LEVER_STEPS`, to see what it
        brings.
    visits : int
        Samples that a training looks at; 0: as many as `visits` says.
    clients : int
    codec : str
        Of our points: the block transform, or ``auto``, which takes an image codec where that is
        better.
    """

    dataset: str
    title: str
    train: int
    recipe: Overrides
    ours: tuple[tuple[int, float], ...]
    codecs: Mapping[str, tuple[tuple[int, int], ...]]
    budgets: Mapping[int, int]
    goals: Mapping[int, float] = field(default_factory=dict)
    baselines: Mapping[str, Overrides] = field(default_factory=dict)
    published: tuple[Published, ...] = ()
    levers: Mapping[str, Overrides] = field(default_factory=dict)
    visits: int = 0
    clients: int = 10
    codec: str = "dct"


_PRESET = Path(fl_app.__file__).parent / "presets" / "resnet9.toml"
_RECIPE: Overrides = {**tomllib.loads(_PRESET.read_text(encoding="utf-8")), "width": WIDTH}
_NARROW_RECIPE: Overrides = {**_RECIPE, "width": NARROW}
BATCH = int(_RECIPE["server-batch-size"])  # samples of an optimizer step
_IMAGE_FILES: Mapping[str, Overrides] = {
    "AVIF": {"codec": "avif"},
    "WebP": {"codec": "webp"},
    "JPEG XL": {"codec": "jpeg-xl"},
    "JPEG": {"codec": "jpeg"},
}
# Methods whose models' changes travel: 480,000 images looked at by ten clients.
_LOCAL: Overrides = {
    "num-rounds": 20,
    "local-steps": 75,
    "batch-size": 32,
    "width": NARROW,
    "learning-rate": 0.1,
}
# What the recipe has beside a plain training; the steps are those of as many bytes.
_GAINS: Mapping[str, Overrides] = {
    "without averaged weights": {"ema-decay": 0.0},
    "without cutout": {"augment": "crop-flip"},
    "without label smoothing": {"label-smoothing": 0.0},
    "without mirror images in the test": {"test-flip": False},
    "with the block transform's own steps": {"step": 0.6, "tilt": 0.55, "chroma": 2.0},
    "without calibration by nodes": {"calibration-nodes": 0},
}
_LEVERS: Mapping[str, Overrides] = {
    **_GAINS,
    "with none of these": {key: value for gain in _GAINS.values() for key, value in gain.items()},
    "with one block": {"block": 32},
    "with twice the width": {"width": WIDTH},
}
DATA: Mapping[str, Data] = {
    "cifar10": Data(
        dataset="cifar10",
        title="CIFAR-10, ResNet-9, 10 clients",
        train=50_000,
        recipe=_RECIPE,
        ours=((5_600, 0.69), (12_500, 0.48), (1_800, 0.69), (25_000, 0.24), (50_000, 0.24)),
        codecs={
            "AVIF": ((5_000, 20), (10_300, 35), (1_600, 20), (25_000, 48), (50_000, 50)),
            "WebP": ((3_500, 1), (11_000, 1)),
            "JPEG XL": ((4_000, 10), (12_000, 10)),
            "JPEG": ((3_000, 10), (10_000, 10)),
        },
        budgets={
            30_000: 600,
            100_000: 2_200,
            300_000: 4_800,
            1_000_000: 10_000,
            2_000_000: 16_000,
            4_000_000: 25_000,
            8_000_000: 42_000,
        },
        baselines={rival.name: {**rival.config, **_LOCAL} for rival in RIVALS},
        levers=_LEVERS,
        goals={300_000: 0.74, 1_000_000: 0.83, 4_000_000: 0.91, 8_000_000: 0.935},
        published=(Published("IDC, 10 images a class (distillation)", 315_000, 0.675),),
    ),
    "tiny-imagenet": Data(
        dataset="imagefolder",
        title="Tiny ImageNet (20 classes, 64 pixels), ResNet-18, 10 clients",
        train=10_000,
        recipe={**_NARROW_RECIPE, "model": "resnet18", "image-size": 64, "learning-rate": 0.1},
        # Six epochs: a core of a CPU does fifty images a second.
        visits=60_000,
        ours=((10_000, 0.8), (10_000, 0.5)),
        codecs={"AVIF": ((10_000, 15), (10_000, 25))},
        budgets={},
    ),
    "fashion-mnist": Data(
        dataset="fashion-mnist",
        title="Fashion-MNIST, ResNet-9, 10 clients",
        train=60_000,
        recipe=_NARROW_RECIPE,
        visits=150_000,  # it is learned sooner
        codec="auto",
        ours=((3_000, 0.5), (9_000, 0.5), (28_000, 0.5), (1_000, 0.5), (1_950, 0.5), (60_000, 0.5)),
        codecs={
            "AVIF": ((3_000, 10), (9_000, 10), (28_000, 10), (1_000, 10), (2_130, 10), (9_000, 25)),
            "WebP": ((3_000, 1), (9_000, 1)),
            "JPEG XL": ((9_000, 10),),
            "JPEG": ((9_000, 10),),
        },
        budgets={
            10_000: 200,
            30_000: 600,
            100_000: 2_000,
            300_000: 6_000,
            1_000_000: 20_000,
            3_000_000: 60_000,
        },
        published=(Published("IDC, 10 images a class (distillation)", 78_400, 0.86),),
    ),
}


def tasks(name: str, seeds: int) -> Iterator[Task]:
    """Yield what is to be measured of a data set, seed by seed, the points named first first."""
    data = DATA[name]
    for seed in range(seeds):
        for samples, step in data.ours:
            yield Task(name, OURS, {"codec": data.codec, "step": step}, samples, seed)
        for codec, points in data.codecs.items():
            for samples, quality in points:
                config = {**_IMAGE_FILES[codec], "quality": quality}
                yield Task(name, codec, config, samples, seed)
        for budget in data.budgets:
            yield Task(name, BUDGET, {"uplink-budget-total": budget}, 0, seed)
        yield Task(name, RAW, {"codec": "lossless"}, 0, seed)
        for method, baseline in data.baselines.items():
            yield Task(name, method, baseline, 0, seed)
        samples, step = data.ours[0]
        short: Overrides = {"step": step, "server-steps": LEVER_STEPS, "width": NARROW}
        for lever, change in {LEVERS_BASE: {}, **data.levers}.items() if data.levers else ():
            yield Task(
                name, f"{OURS} {lever}", {"codec": data.codec, **short, **change}, samples, seed
            )


def run_config(task: Task) -> dict[str, ConfigValue]:
    """Return the run config of a task: the recipe, with its steps, and what is the task's own."""
    data = DATA[task.data]
    shape: dict[str, ConfigValue] = {}
    if task.config.get("strategy", "replay") == "replay":
        budget = int(task.config.get("uplink-budget-total", 0))
        samples = task.samples or data.budgets.get(budget, data.train)
        shape = {
            "num-rounds": 1,
            "server-steps": (data.visits or visits(samples)) // BATCH,
            "max-train-samples": task.samples,
        }
        if samples < CALIBRATED:
            shape["calibration-nodes"] = 0
    own: dict[str, ConfigValue] = {"dataset": data.dataset, "seed": task.seed}
    return {**data.recipe, **shape, **own, **task.config}
