"""Run configuration: Flower's flat ``run_config`` as one frozen, validated object."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, TypeVar

from clients.baselines.gradient import GradientInstruction
from clients.baselines.local_training import LocalInstruction
from clients.importance import IMPORTANCES
from clients.instruction import Instruction
from clients.selection import SELECTIONS
from codec import REFINEMENTS, CodecError, CodecOptions, Compression, Refinement
from codec.gradients.compression import COMPRESSIONS

T = TypeVar("T")


class ConfigError(ValueError):
    """A run-config entry that cannot be used; names key, value and what is legal."""


@dataclass(frozen=True)
class Range:
    """Interval of legal finite numbers, closed unless ``open_low``."""

    low: float
    high: float = math.inf
    open_low: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and value <= self.high and math.isfinite(value)

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"{'>' if self.open_low else '>='} {self.low}"
        return f"in {'(' if self.open_low else '['}{self.low}, {self.high}]"


class OneOf(tuple[str, ...]):
    """Legal names of an enumerated key."""

    def __str__(self) -> str:
        return "one of " + ", ".join(self)


def _key(default: T, doc: str, legal: Range | OneOf | None = None) -> T:
    value: T = field(default=default, metadata={"doc": doc, "legal": legal})
    return value


def _choice(doc: str, *names: str) -> str:
    return _key(names[0], doc, OneOf(names))


_POSITIVE = Range(0, open_low=True)
_SHARE = Range(0, 1)
_PROPER_SHARE = Range(0, 1, open_low=True)
_COUNT = Range(1)
_COUNT_OR_NONE = Range(0)


@dataclass(frozen=True)
class RunConfig:
    """Everything one run depends on; `from_run_config` is how an app makes it.

    Each field is the run-config key of the same name in kebab case. The codec's own
    options are keys too, under the names that `codec.CodecOptions` gives them. What a
    field means and what is legal stand in its declaration below.
    """

    strategy: str = _choice(
        "learning algorithm (the last two are rivals: compressed gradients, and Flower's FedAvg)",
        *("replay", "sgd", "gradient", "fedavg"),
    )
    num_rounds: int = _key(8, "federated rounds", _COUNT)

    dataset: str = _choice(
        "what is learned", "mnist5k", "fashion-mnist", "cifar10", "cifar100", "imagefolder"
    )
    data_dir: str = _key("", "folder of the data set (a node's own data-dir goes first)")
    image_size: int = _key(64, "imagefolder: side that images are resized and cropped to", _COUNT)
    max_train_samples: int = _key(
        0, "train on a random part of this size (0 = all)", _COUNT_OR_NONE
    )
    partition: str = _choice("split between clients", "iid", "dirichlet")
    dirichlet_alpha: float = _key(0.5, "dirichlet: smaller is more skewed", _POSITIVE)

    model: str = _choice(
        "network (auto: small-resnet up to 28 pixels, else resnet18)",
        *("auto", "resnet18", "resnet34", "resnet50", "resnet20", "small-resnet", "logistic"),
    )
    stem: str = _choice(
        "first layer of resnet18/34/50 (3x3: for small images, slower)", "imagenet", "3x3"
    )

    codec: CodecOptions = field(default_factory=CodecOptions)

    importance: str = _choice("score of a sample", *IMPORTANCES)
    selection: str = _choice(
        "from scores to samples (auto: budget for replay, probability for sgd)",
        *("auto", *SELECTIONS),
    )
    keep_rate: float = _key(1.0, "share of the samples that is kept", _PROPER_SHARE)
    uniform_share: float = _key(0.2, "share of the keep probability spread evenly", _SHARE)
    pool_factor: float = _key(4.0, "replay: samples scored by a model per sample sent", Range(1))
    refinement: str = _choice(
        "sgd: compressor of the gradient residual (auto: eden at the rate it needs)", *REFINEMENTS
    )
    compressor: str = _choice(
        "gradient: compressor of the gradient (none: fp32); fedavg: of the model's change",
        *COMPRESSIONS,
    )
    compressor_bits: int = _key(2, "eden, qsgd: bits per coordinate", Range(1, 16))
    compressor_density: float = _key(0.01, "top-k, rand-k: share of the coordinates", _PROPER_SHARE)
    compressor_rank: int = _key(2, "powersgd: rank", _COUNT)
    refinement_tolerance: float = _key(
        0.3, "auto: error that may stay in the gradient, as a share of its norm", _POSITIVE
    )
    majority_vote: bool = _key(False, "gradient, sign: bare signs and a vote")
    momentum_correction: float = _key(
        0.0, "gradient, top-k and vote: momentum on the clients (set momentum = 0)", Range(0, 0.999)
    )
    local_steps: int = _key(10, "fedavg: steps of a client per round", _COUNT)
    batch_size: int = _key(
        32, "sgd, gradient: samples a client draws per round; fedavg: per local step", _COUNT
    )
    samples_per_round: int = _key(
        100, "replay: most samples a client sends per round (0 = no limit)", _COUNT_OR_NONE
    )
    uplink_budget: int = _key(0, "bytes a client may send per round (0 = no limit)", _COUNT_OR_NONE)

    server_steps: int = _key(100, "replay: optimizer steps per round", _COUNT)
    server_batch_size: int = _key(64, "replay: samples per optimizer step", _COUNT)
    augment: str = _choice(
        "what minibatches go through (auto: crop for digits, crop-flip for photographs); "
        "not used with a refinement",
        *("auto", "none", "crop", "crop-flip"),
    )
    optimizer: str = _choice("optimizer of the server", "sgd", "adam", "adamw")
    learning_rate: float = _key(0.2, "(peak) learning rate", _POSITIVE)
    momentum: float = _key(0.9, "sgd momentum, adam's beta1", Range(0, 0.999))
    weight_decay: float = _key(5e-4, "weight decay", Range(0))
    schedule: str = _choice("learning rate over the run", "one-cycle", "cosine", "constant")

    fraction_train: float = _key(1.0, "share of the connected nodes asked per round", _PROPER_SHARE)
    min_available_nodes: int = _key(1, "nodes that must be connected before a round", _COUNT)
    round_timeout: float = _key(600.0, "seconds to wait for a round's replies", _POSITIVE)
    eval_every: int = _key(1, "rounds between two evaluations (the last is always one)", _COUNT)
    device: str = _key("auto", "torch device of the server")
    threads: int = _key(
        0, "CPU threads of the server (0 = 1 for a small model, else all cores)", _COUNT_OR_NONE
    )
    seed: int = _key(0, "seed of everything random", Range(0, 2**32 - 1))
    out_dir: str = _key("", "run folder (empty: runs/<time>-<dataset>-<strategy>)")

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
            On an unknown key, a wrong type (Flower checks none) or an illegal value.
        """
        own, codec = _own_fields(), {_kebab(f): f for f in fields(CodecOptions)}
        for key in run_config:
            if key not in own and key not in codec:
                raise ConfigError(_unknown(key, [*own, *codec]))
        values = {
            f.name: _checked(key, run_config[key], f) for key, f in own.items() if key in run_config
        }
        options = {
            f.name: _checked(key, run_config[key], f)
            for key, f in codec.items()
            if key in run_config
        }
        try:
            config = cls(codec=CodecOptions(**options), **values)
            _check_instruction(config)
        except CodecError as error:
            raise ConfigError(str(error)) from error
        return config

    def to_run_config(self) -> dict[str, bool | int | float | str]:
        """Return the flat kebab-case mapping that `from_run_config` reads."""
        own = {key: getattr(self, f.name) for key, f in _own_fields().items()}
        codec = {_kebab(f): getattr(self.codec, f.name) for f in fields(CodecOptions)}
        # The codec keeps float32: seven digits are what was asked for.
        return own | {k: float(f"{v:.7g}") if type(v) is float else v for k, v in codec.items()}

    @property
    def compression(self) -> Compression:
        """The rivals' compressor and its rate."""
        kind = self.compressor
        if self.strategy == "gradient" and kind == "none":
            kind = "fp32"
        return Compression(
            kind, self.compressor_bits, self.compressor_density, self.compressor_rank
        )

    @property
    def residual(self) -> Refinement:
        """How the residual of the gradient is compressed."""
        return Refinement(
            self.refinement,
            self.compressor_bits,
            self.compressor_density,
            self.compressor_rank,
            self.refinement_tolerance,
        )

    @property
    def selection_rule(self) -> str:
        """The selection that "auto" means for the strategy."""
        if self.selection != "auto":
            return self.selection
        return "budget" if self.strategy == "replay" else "probability"


def _check_instruction(config: RunConfig) -> None:
    """Find now what every client would refuse later, such as keys that contradict each other."""
    if config.strategy in ("gradient", "fedavg"):
        training: dict[str, Any] = {
            "server_round": 1,
            "seed": config.seed,
            "batch_size": config.batch_size,
            "compressor": config.compression.kind,
            "compressor_bits": config.compressor_bits,
            "compressor_density": config.compressor_density,
            "compressor_rank": config.compressor_rank,
        }
        if config.strategy == "gradient":
            GradientInstruction(
                **training,
                momentum_correction=config.momentum_correction,
                majority_vote=config.majority_vote,
            )
        else:
            LocalInstruction(
                **training,
                local_steps=config.local_steps,
                learning_rate=config.learning_rate,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
            )
        return
    Instruction(
        server_round=1,
        seed=config.seed,
        mode=config.strategy,
        codec=config.codec,
        batch_size=config.batch_size,
        importance=config.importance,
        selection=config.selection_rule,
        keep_rate=config.keep_rate,
        uniform_share=config.uniform_share,
        uplink_budget=config.uplink_budget,
        refinement=config.refinement,
        compressor_bits=config.compressor_bits,
        compressor_density=config.compressor_density,
        compressor_rank=config.compressor_rank,
        refinement_tolerance=config.refinement_tolerance,
        pool_factor=config.pool_factor,
    )


def _kebab(key_field: Field[Any]) -> str:
    return key_field.name.replace("_", "-")


def _own_fields() -> dict[str, Field[Any]]:
    return {_kebab(f): f for f in fields(RunConfig) if f.name != "codec"}


def _unknown(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "known keys: " + ", ".join(sorted(known))
    return f"run config has no key {key!r}; {hint}"


def _checked(key: str, value: Any, key_field: Field[Any]) -> Any:
    """Return `value` in the type of the field's default, if it is legal."""
    kind: Any = type(key_field.default)
    accepted = (int, float) if kind is float else (kind,)
    if type(value) not in accepted:
        raise ConfigError(
            f"{key} = {value!r} must be {_KIND_NAMES[kind]}, not {type(value).__name__}"
        )
    legal = key_field.metadata.get("legal")
    if legal is not None and value not in legal:
        raise ConfigError(f"{key} = {value!r} must be {legal}")
    return kind(value)


_KIND_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


@dataclass(frozen=True)
class KeyDescription:
    """A run-config key, for help and documentation.

    Attributes
    ----------
    key : str
        Kebab-case name.
    default : bool, int, float or str
    legal : str
        Legal values, or the type if all of it are.
    doc : str
        Meaning.
    """

    key: str
    default: bool | int | float | str
    legal: str
    doc: str


def described_keys() -> list[KeyDescription]:
    """Return every run-config key, those of the codec among them, in order of declaration."""
    defaults = RunConfig().to_run_config()
    declared = {
        _kebab(key_field): key_field.metadata
        for own in fields(RunConfig)
        for key_field in (fields(CodecOptions) if own.name == "codec" else [own])
    }
    return [
        KeyDescription(
            key,
            defaults[key],
            str(metadata.get("legal") or _KIND_NAMES[type(defaults[key])]),
            metadata.get("doc", ""),
        )
        for key, metadata in declared.items()
    ]
