"""What is compared: presets of methods, each a run config of the app."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from sim.run_config import ConfigValue

Overrides = Mapping[str, ConfigValue]

LOCAL_BATCH = 32  # samples of a local step of FedAvg, per client


@dataclass(frozen=True)
class Method:
    """One line of a comparison.

    Attributes
    ----------
    name : str
        What tables and figures call it.
    config : mapping
        Run-config overrides beside the preset's own.
    grid : mapping of str to tuple
        Values that are tried for run-config keys, one key at a time, before the seeds are run;
        where the best of a geometric grid is at its end, the search goes on beyond it.
    """

    name: str
    config: Overrides = field(default_factory=dict)
    grid: Mapping[str, tuple[ConfigValue, ...]] = field(default_factory=dict)

    @property
    def is_image_codec(self) -> bool:
        """Whether samples travel as files of a standard image codec."""
        from codec.samples.image_file import IMAGE_FILES  # imports NumPy

        return self.config.get("codec") in [codec.name for codec in IMAGE_FILES]

    def with_values(self, values: Overrides) -> "Method":
        """Return the method with values that a search over its grid tries or has chosen."""
        return replace(self, config={**self.config, **values})


@dataclass(frozen=True)
class Preset:
    """A comparison.

    Attributes
    ----------
    name, title : str
    config : mapping
        Run-config overrides that all methods share.
    methods : tuple of Method
        The first one is ours; tables give bytes in multiples of its.
    steps : int
        Optimizer steps of each method.
    batch_size : int
        Samples of a step, over all clients.
    evaluations : int
        Evaluation points, evenly spaced over the steps.
    tuning_steps : int
        Optimizer steps of a short trial of the search over a method's grid, see `trial_steps`.
    clients : int
    seeds : int
    """

    name: str
    title: str
    config: Overrides
    methods: tuple[Method, ...]
    steps: int
    batch_size: int
    evaluations: int
    tuning_steps: int = 20
    clients: int = 10
    seeds: int = 3

    def trial_steps(self, method: Method, final: bool) -> int:
        """Return the optimizer steps of a trial, three times as many in a final.

        Federated averaging takes another share of them, as it starts slowly.
        """
        shares = (3 if final else 1) + (method.config.get("strategy") == "fedavg")
        return shares * self.tuning_steps

    def run_config(
        self, method: Method, seed: int, trial_steps: int | None = None
    ) -> dict[str, ConfigValue]:
        """Return the run config of a method: its steps in the rounds that its strategy takes.

        A trial takes `trial_steps` and is evaluated at its end alone.
        """
        steps, evaluations = (trial_steps, 1) if trial_steps else (self.steps, self.evaluations)
        chosen = {**self.config, **method.config, "seed": seed}
        strategy = chosen.get("strategy", "replay")
        own = max(1, round(self.batch_size / self.clients))
        if strategy == "replay":
            shape: dict[str, ConfigValue] = {
                "num-rounds": evaluations,
                "server-steps": steps // evaluations,
                "server-batch-size": self.batch_size,
            }
        elif strategy == "fedavg":
            rounds = max(1, steps // int(chosen["local-steps"]))
            shape = {
                "num-rounds": rounds,
                "batch-size": LOCAL_BATCH,
                "eval-every": max(1, rounds // evaluations),
            }
        else:
            shape = {
                "num-rounds": steps,
                "batch-size": own,
                "eval-every": steps // evaluations,
            }
        return {**shape, **chosen}


_ALL_AT_ONCE: Overrides = {"samples-per-round": 0}  # replay: everything in the first round
OURS = (
    Method("ours, replay", _ALL_AT_ONCE),
    Method("ours, streaming", {"strategy": "streaming"}),
)


def _upload(label: str, codec: str, **config: ConfigValue) -> Method:
    """Return replay with an image codec, of which only lossy ones have a quality."""
    return Method(f"upload {label}", {**_ALL_AT_ONCE, "codec": codec, **config})


def _gradient(name: str, compressor: str, **config: ConfigValue) -> Method:
    own = {key.replace("_", "-"): value for key, value in config.items()}
    return Method(name, {"strategy": "gradient", "compressor": compressor, **own})


def _fedavg(name: str, compressor: str, local_steps: int, **config: ConfigValue) -> Method:
    own = {key.replace("_", "-"): value for key, value in config.items()}
    shape: Overrides = {"strategy": "fedavg", "compressor": compressor, "local-steps": local_steps}
    return Method(name, {**shape, **own})


def _both_ways(name: str, *ways: Overrides, **config: ConfigValue) -> Method:
    """Return federated averaging in which the model's changes travel both ways."""
    compression = {key: value for way in ways for key, value in way.items()}
    return _fedavg(name, str(compression["compressor"]), 10, **config).with_values(compression)


def _top_k(way: str, share: float, bits: int) -> Overrides:
    return {way: "top-k", f"{way}-density": share, f"{way}-value-bits": bits}


GRADIENTS = (
    _gradient("fp32 gradients", "fp32"),
    _gradient("fp16 gradients", "fp16"),
    _gradient("QSGD, 2 bits", "qsgd", compressor_bits=2, compressor_bucket=512),
    _gradient("QSGD, 6 bits, a norm a tensor", "qsgd", compressor_bits=6, compressor_bucket=0),
    _gradient("TernGrad", "terngrad"),
    _gradient("sign + EF", "sign"),
    _gradient("top-1 % + EF", "top-k", compressor_density=0.01),
    _gradient("rand-1 %", "rand-k", compressor_density=0.01),
    _gradient("PowerSGD, rank 2", "powersgd", compressor_rank=2),
    _gradient("EDEN, 1 bit", "eden", compressor_bits=1),
    _gradient("EDEN, 0.1 bits", "eden", compressor_bits=0.1),
)
# Down go all coordinates that the ten clients send: each client learns what all others have sent.
RIVALS = (
    _both_ways(
        "FedAvg, top-1 % both ways", _top_k("compressor", 0.01, 32), _top_k("downlink", 0.1, 16)
    ),
    *(
        _both_ways(
            f"SparseLoCo, {100 * share:.0f} %",
            _top_k("compressor", share, 2),
            _top_k("downlink", 10 * share, 16),
            feedback=0.95,
        )
        for share in (0.01, 0.03)
    ),
    _both_ways(
        "DiLoCo, int4",
        {"compressor": "eden", "compressor-bits": 4},
        {"downlink": "eden", "downlink-bits": 4},
        outer_learning_rate=0.7,
        outer_momentum=0.9,
    ),
)
FEDAVG = (
    _fedavg("FedAvg", "none", 10),
    _fedavg("FedAvg, int8 deltas", "qsgd", 10, compressor_bits=7, compressor_bucket=512),
    _fedavg("FedAvg, top-1 % deltas", "top-k", 10, compressor_density=0.01),
)
_FAST: Overrides = {"avif-speed": 6}
UPLOADS = (
    _upload("JPEG q75", "jpeg", quality=75),
    _upload("JPEG q10", "jpeg", quality=10),
    _upload("flat JPEG q20", "jpeg-flat", quality=20),
    _upload("WebP q1", "webp", quality=1),
    _upload("WebP q10", "webp", quality=10),
    _upload("AVIF q10", "avif", quality=10, **_FAST),
    _upload("AVIF q20", "avif", quality=20, **_FAST),
    _upload("AVIF q35", "avif", quality=35, **_FAST),
    _upload("JPEG XL q10", "jpeg-xl", quality=10),
    _upload("PNG", "png"),
    _upload("WebP lossless", "webp-lossless"),
    _upload("JPEG XL lossless", "jpeg-xl-lossless"),
)
_GRID: Mapping[str, tuple[ConfigValue, ...]] = {"learning-rate": (0.05, 0.1)}
# 1 % of the coordinates ten times is too little for ResNet-20 to leave chance level.
_ROUNDS_TOO: Mapping[str, tuple[ConfigValue, ...]] = {"local-steps": (10, 5, 2), **_GRID}
_MORE_ROUNDS = {"FedAvg, top-1 % deltas": _ROUNDS_TOO}


def _all(
    *steps: float, grids: Mapping[str, Mapping[str, tuple[ConfigValue, ...]]] | None = None
) -> tuple[Method, ...]:
    """Return ours at some quantization steps, the first as the reference, and all baselines.

    Ours and the uploads, which differ in the codec alone, take the learning rate of the preset.
    `grids` holds the grids of methods that need more than a search over the learning rate.
    """
    replay, streaming = OURS
    ours = (
        Method(f"{replay.name}, step {step}", {**replay.config, "step": step}) for step in steps
    )
    tuned = (
        replace(method, grid=(grids or {}).get(method.name, default))
        for methods, default in ((GRADIENTS, _GRID), (FEDAVG, _GRID), (RIVALS, _ROUNDS_TOO))
        for method in methods
    )
    return (*ours, streaming, *tuned, *UPLOADS)


_CIFAR: Overrides = {"dataset": "cifar10", "max-train-samples": 10000, "step": 0.3}
_FASHION: Overrides = {
    "dataset": "fashion-mnist",
    "learning-rate": 0.1,
    "model": "small-resnet",
    "max-train-samples": 10000,
}
_SKEWED: Overrides = {"partition": "dirichlet", "dirichlet-alpha": 0.3}
_ALL_PRESETS = (
    Preset(
        "smoke",
        "MNIST digits, small ResNet, a few steps",
        {"dataset": "mnist5k", "model": "small-resnet", "max-train-samples": 2000},
        (
            *OURS,
            _gradient("QSGD, 2 bits", "qsgd", compressor_bits=2, compressor_bucket=512),
            _fedavg("FedAvg, int8 deltas", "qsgd", 10, compressor_bits=7, compressor_bucket=512),
            _upload("JPEG q20", "jpeg", quality=20),
        ),
        steps=60,
        batch_size=64,
        evaluations=3,
        clients=4,
        seeds=1,
    ),
    Preset(
        "cifar10-resnet18",
        "CIFAR-10, ResNet-18, 10 clients",
        {**_CIFAR, "model": "resnet18", "learning-rate": 0.05},
        _all(0.8, 0.3, 0.5, 1.2),
        steps=150,
        batch_size=320,
        evaluations=5,
        tuning_steps=30,
    ),
    Preset(
        "cifar10-resnet20",
        "CIFAR-10, ResNet-20, 10 clients",
        {**_CIFAR, "model": "resnet20", "learning-rate": 0.1},
        _all(0.8, 0.3, 0.5, 1.2, grids=_MORE_ROUNDS),
        steps=100,
        batch_size=320,
        evaluations=5,
        tuning_steps=20,
    ),
    Preset(
        "fashion-mnist",
        "Fashion-MNIST, small ResNet, 10 clients",
        _FASHION,
        _all(0.8, 0.2, 0.3, 0.5, 1.2, 1.8),
        steps=200,
        batch_size=160,
        evaluations=5,
        tuning_steps=40,
    ),
    Preset(
        "fashion-mnist-dirichlet",
        "Fashion-MNIST, small ResNet, 10 clients, Dirichlet(0.3)",
        {**_FASHION, **_SKEWED},
        _all(0.8, 0.2, 0.3, 0.5, 1.2, 1.8),
        steps=200,
        batch_size=160,
        evaluations=5,
        tuning_steps=40,
    ),
)
PRESETS = {preset.name: preset for preset in _ALL_PRESETS}
