"""Run configuration: Flower's flat ``run_config`` as one frozen, validated object."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from codec import CodecError, CodecOptions, Compression, OptionError
from codec.messages import (
    FEDAVG,
    GRADIENT,
    MODEL,
    REPLAY,
    REQUESTS,
    SCOUT,
    STREAMING,
    AveragingOptions,
    BankTraining,
    BudgetOptions,
    ClientOptions,
    FilterOptions,
    GradientOptions,
    LocalOptions,
    OuterOptions,
    Participation,
    ReplayOptions,
    Request,
    StreamingOptions,
)
from codec.options import (
    COUNT,
    COUNT_OR_NONE,
    POSITIVE,
    SHARE,
    OneOf,
    Options,
    Range,
    Scalar,
    choice,
    did_you_mean,
    flat_fields,
    kind_name,
    option,
    pick,
    redeclared,
)
from fl_app.data import DATASETS


class ConfigError(ValueError):
    """A run-config entry that cannot be used; names key, value and what is legal."""


class _Devices(OneOf):
    """Names of torch's devices, "cuda:N" among them."""

    def __contains__(self, name: object) -> bool:
        kind, colon, number = str(name).partition(":")
        numbered = number.isdecimal() and kind not in ("auto", "cpu")
        return super().__contains__(kind) and (numbered or not colon)

    def __str__(self) -> str:
        return f"{super().__str__()}, or with a number, as cuda:1"


DEVICES = _Devices(("auto", "cpu", "cuda", "mps", "xpu"))
_SAMPLES_PER_ROUND = 100
_WIDTHS = Range(0, 1024)
_SIDES, _THREADS = Range(1, 4096), Range(0, 1024)


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """The run."""

    strategy: str = choice(
        "learning algorithm (the last two are baselines: compressed gradients, Flower's FedAvg)",
        *(REPLAY, STREAMING, GRADIENT, FEDAVG),
    )
    num_rounds: int = option(8, "federated rounds", COUNT)
    eval_every: int = option(1, "rounds between two evaluations (the last is always one)", COUNT)
    round_timeout: float = option(600.0, "seconds to wait for a round's replies", POSITIVE)
    device: str = option("auto", "torch device of the server", DEVICES)
    threads: int = option(
        0, "CPU threads of the server (0 = 1 for a small model, else all cores)", _THREADS
    )
    target_accuracy: float = option(
        0.0, "test accuracy at which the run ends, as a share (0 = none)", SHARE
    )
    out_dir: str = option("", "run folder (empty: runs/<time>-<dataset>-<strategy>)")
    bank: str = option(
        "",
        "replay: file that keeps the samples, of earlier runs too (empty: bank.sqlite in the run "
        "folder; in memory without checkpoints)",
    )
    checkpoint_every: int = option(
        1, "rounds between two checkpoints in the run folder (0 = none)", COUNT_OR_NONE
    )
    resume: bool = option(False, "go on from the checkpoint in out-dir")


@dataclass(frozen=True, kw_only=True)
class DataOptions(Options):
    """Data."""

    dataset: str = choice("what is learned", *DATASETS)
    data_dir: str = option("", "folder of the data set (a node's own data-dir goes first)")
    state_dir: str = option(
        "", "folder in which a device remembers what it sent (a node's own state-dir goes first)"
    )
    image_size: int = option(64, "imagefolder: side that images are resized and cropped to", _SIDES)
    max_train_samples: int = option(
        0, "train on a random part of this size (0 = all)", COUNT_OR_NONE
    )
    partition: str = choice("split between clients", "iid", "dirichlet")
    dirichlet_alpha: float = option(0.5, "dirichlet: smaller is more skewed", POSITIVE)


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """Model."""

    model: str = choice(
        "network (auto: small-resnet up to 28 pixels, else resnet18)",
        *("auto", "resnet18", "resnet34", "resnet50", "resnet9", "resnet20", "small-resnet"),
        "logistic",
    )
    stem: str = choice(
        "first layer of resnet18/34/50 (3x3: for small images, slower)", "imagenet", "3x3"
    )
    width: int = option(
        0, "channels of the first layer of resnet9 and small-resnet (0: 32, and 16)", _WIDTHS
    )


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(Options):
    """Training."""

    augment: str = choice(
        "what minibatches go through (auto: crop for digits, crop-flip for photographs); "
        "not used with a refinement",
        *("auto", "none", "crop", "crop-flip", "crop-flip-cutout"),
    )
    test_flip: bool = option(
        False, "evaluate on the mean of the outputs for an image and its mirror image"
    )
    label_smoothing: float = option(
        0.0, "replay: share of a label that is spread over all classes", Range(0, 0.9)
    )
    precision: str = choice(
        "replay, streaming: of the server's forward and backward passes (auto: bf16 on GPUs that "
        "have it; fastest: on CPUs that have it, too, where it is two to three times as fast)",
        *("auto", "fastest", "fp32", "bf16"),
    )
    optimizer: str = choice("optimizer of the server", "sgd", "adam", "adamw")
    learning_rate: float = option(0.2, "(peak) learning rate", POSITIVE)
    schedule: str = choice("learning rate over the run", "one-cycle", "cosine", "constant")


# The keys in the order in which they are listed; one stands with the first group that has it.
GROUPS: Mapping[str, type[Options]] = {
    "Run": RunOptions,
    "Clients": ClientOptions,
    "Who takes part": Participation,
    "Averages": AveragingOptions,
    "Data": DataOptions,
    "Model": ModelOptions,
    "How samples are coded": CodecOptions,
    "Which samples are sent": FilterOptions,
    "Bytes of the whole run": BudgetOptions,
    "Replay": ReplayOptions,
    "Replay, on the server": BankTraining,
    "Streaming": StreamingOptions,
    "Training": TrainingOptions,
    "Baselines: local training": LocalOptions,
    "Baselines: the server's step": OuterOptions,
    "Baselines: compressed gradients": GradientOptions,
}


@dataclass(frozen=True, kw_only=True)
class RunConfig(
    OuterOptions,
    LocalOptions,
    GradientOptions,
    TrainingOptions,
    StreamingOptions,
    BankTraining,
    BudgetOptions,
    ReplayOptions,
    ModelOptions,
    DataOptions,
    AveragingOptions,
    Participation,
    RunOptions,
):
    """Everything one run depends on; `from_run_config` is how an app makes it.

    Each field is the run-config key of the same name in kebab case, and so are the fields of
    `codec`, `refinement`, `compression` and `downlink`. What a field means and what is legal stand
    in its declaration, in one of the groups that this class is made of.
    """

    # Not all at once, so that the app shows how accuracy grows with bytes.
    samples_per_round: int = redeclared(ReplayOptions, "samples_per_round", _SAMPLES_PER_ROUND)

    @classmethod
    def from_run_config(cls, run_config: Mapping[str, Any]) -> "RunConfig":
        """Validate Flower's run config.

        Parameters
        ----------
        run_config : mapping of str to bool, int, float or str
            Kebab-case keys; those absent take their default.

        Raises
        ------
        ConfigError
            On an unknown key, a wrong type (Flower checks none), an illegal value, or keys that
            contradict each other.
        """
        known = [key for key, _ in flat_fields(cls)]
        for key in run_config:
            if key not in known:
                hint = did_you_mean(key, known, what="known keys")
                raise ConfigError(f"run config has no key {key!r}; {hint}")
        try:
            config = cls.from_flat(run_config)
            config.check()
        except OptionError as error:
            raise ConfigError(str(error.under_key(error.name.replace("_", "-")))) from error
        except CodecError as error:
            raise ConfigError(str(error)) from error
        return config

    def to_run_config(self) -> dict[str, Scalar]:
        """Return the flat kebab-case mapping that `from_run_config` reads."""
        return self.to_flat()

    def check(self) -> None:
        """Raise `CodecError` if keys contradict each other, or leave nothing to learn."""
        if self.strategy != STREAMING and self.refinement:
            raise CodecError(
                f"refinement = {self.refinement.kind!r} needs strategy = {STREAMING!r}; with "
                f"{self.strategy!r}, set refinement = 'none'"
            )
        if self.strategy != REPLAY and self.scorer == SCOUT:
            raise CodecError(
                f"scorer = {SCOUT!r} needs strategy = {REPLAY!r}, whose server keeps samples to "
                f"train it on; with {self.strategy!r}, set scorer = {MODEL!r}"
            )
        self._check_budget()
        if self.resume and not self.out_dir:
            raise CodecError("resume needs out-dir, the folder of the run that goes on")
        if self.strategy == REPLAY and not self.server_steps:
            raise CodecError("server-steps = 0 leaves the model as it is; set it to 1 or more")
        if self.strategy == FEDAVG:
            self.check_uplink(self.compression)
        self.request()

    def _check_budget(self) -> None:
        """Raise `CodecError` if a budget of the whole run cannot be had, or others contradict it.

        The number of samples a round is not known to be the user's own where it is the default.
        """
        total = self.uplink_budget_total
        if not total:
            return
        if self.strategy != REPLAY:
            raise OptionError(
                "uplink_budget_total",
                f"= {total} needs strategy = {REPLAY!r}, whose server plans what is sent; with "
                f"{self.strategy!r}, set it to 0",
            )
        if self.samples_per_round not in (0, _SAMPLES_PER_ROUND):
            raise OptionError(
                "samples_per_round",
                f"= {self.samples_per_round} contradicts uplink-budget-total = {total}, from which "
                "follows what a node sends in a round: leave one of them out",
            )
        if self.uplink_budget:
            raise OptionError(
                "uplink_budget",
                f"= {self.uplink_budget} contradicts uplink-budget-total = {total}, which is "
                "divided between nodes and rounds: leave one of them out",
            )

    def request(self) -> Request:
        """Return what the strategy asks of clients, but for what is a round's or a node's own.

        Raises
        ------
        CodecError
            If options contradict each other: what every client would refuse later.
        """
        config = self
        if self.strategy == GRADIENT and not self.compression:
            config = replace(self, compression=Compression("fp32"))
        own: dict[str, Any] = {"bank": b""} if self.strategy == REPLAY else {}  # no file's name
        return pick(REQUESTS[self.strategy], config, server_round=1, **own)


def check_classes(dataset: str, classes: int) -> None:
    """Raise `ConfigError` unless there are classes to tell apart."""
    if classes < 2:
        raise ConfigError(
            f"dataset = {dataset!r} has {classes} class; a model needs at least 2 to tell apart: "
            "give every class a folder of its own"
        )


@dataclass(frozen=True)
class KeyDescription:
    """A run-config key in words.

    Attributes
    ----------
    group : str
        What it belongs to.
    key : str
    default : bool, int, float or str
    legal : str
        Legal values.
    doc : str
        Meaning.
    """

    group: str
    key: str
    default: Scalar
    legal: str
    doc: str


def described_keys() -> list[KeyDescription]:
    """Return all run-config keys, group by group."""
    described: dict[str, KeyDescription] = {}
    defaults = RunConfig().to_run_config()
    for title, group in GROUPS.items():
        for key, declared in flat_fields(group):
            legal = declared.metadata["legal"] or kind_name(declared)
            doc = declared.metadata["doc"]
            described.setdefault(key, KeyDescription(title, key, defaults[key], str(legal), doc))
    return list(described.values())
