"""What the server asks of a client and what a client answers; every option is declared here once.

Four kinds of work, each with its options, the request of a round, and the reply:

=========  ====================  ====================  ===================
mode       options               request               reply
=========  ====================  ====================  ===================
streaming  `StreamingOptions`    `StreamingRequest`    `SampleReply`
replay     `ReplayOptions`       `ReplayRequest`       `SampleReply`
gradient   `GradientOptions`     `GradientRequest`     `GradientReply`
fedavg     `LocalOptions`        `LocalRequest`        `LocalReply`
=========  ====================  ====================  ===================

The options are keys of the run config, keyword arguments of the strategies and entries of the
requests, under one name: ``keep_rate`` in Python is ``keep-rate`` elsewhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType

from codec.errors import OptionError
from codec.gradients import GradientCompressor
from codec.gradients.compression import UNCOMPRESSED, Compression
from codec.gradients.joined import joined
from codec.gradients.majority_vote import Ballot
from codec.gradients.refinement import Refinement
from codec.options import (
    COUNT,
    COUNT_OR_NONE,
    PROPER_SHARE,
    SHARE,
    Options,
    Range,
    choice,
    option,
    required,
)
from codec.samples.options import CodecOptions

# Records of a message.
CONFIG, ARRAYS, PAYLOAD = "config", "arrays", "payload"

# Scores that a client computes with the model (`clients.importance` has a function for each).
SCORED = ("loss", "grad-norm", "margin", "entropy")
IMPORTANCES = ("all", "random", *SCORED)
PROBABILITY, TOP = "probability", "top"
SELECTIONS = (PROBABILITY, TOP)

STREAMING, REPLAY, GRADIENT, FEDAVG = "streaming", "replay", "gradient", "fedavg"

_MOMENTUM = Range(0, 0.999)
_SEED = Range(0, 2**32 - 1)  # what NumPy's and torch's generators take


# Options


@dataclass(frozen=True, kw_only=True)
class Seeded(Options):
    """Seed of a run."""

    seed: int = option(0, "seed of everything random", _SEED)


@dataclass(frozen=True, kw_only=True)
class Participation(Seeded):
    """Which nodes take part in a round."""

    fraction_train: float = option(
        1.0, "share of the connected nodes asked per round", PROPER_SHARE
    )
    min_available_nodes: int = option(1, "nodes that must be connected before a round", COUNT)


@dataclass(frozen=True, kw_only=True)
class FilterOptions(Options):
    """The importance filter: which samples a client sends."""

    importance: str = choice("score of a sample", *IMPORTANCES)
    selection: str = choice(
        "from scores to samples: keep each with a probability (unbiased), or the top ones "
        "(auto: top for replay, probability for streaming)",
        *("auto", *SELECTIONS),
    )
    keep_rate: float = option(1.0, "share of the samples that is kept", PROPER_SHARE)
    uniform_share: float = option(0.2, "share of the keep probability spread evenly", SHARE)
    uplink_budget: int = option(
        0, "bytes of samples a client may send per round (0 = no limit)", COUNT_OR_NONE
    )

    @property
    def needs_scores(self) -> bool:
        """Whether samples are scored by the model that comes with the request."""
        return self.importance in SCORED


@dataclass(frozen=True, kw_only=True)
class SampleOptions(FilterOptions):
    """Which samples a client sends, and how they are coded."""

    codec: CodecOptions = field(default_factory=CodecOptions)


@dataclass(frozen=True, kw_only=True)
class Minibatch(Options):
    """Size of a client's minibatches."""

    batch_size: int = option(
        32,
        "streaming, gradient: samples a client draws per round; fedavg: per local step",
        COUNT,
    )


@dataclass(frozen=True, kw_only=True)
class StreamingOptions(SampleOptions, Minibatch):
    """Minibatches of quantized samples, one optimizer step a round."""

    refinement: Refinement = field(default_factory=Refinement)


@dataclass(frozen=True, kw_only=True)
class ReplayOptions(SampleOptions):
    """Samples that are sent once and kept by the server."""

    samples_per_round: int = option(
        100, "replay: most samples a client sends per round (0 = no limit)", COUNT_OR_NONE
    )
    pool_factor: float = option(4.0, "replay: samples scored by a model per sample sent", Range(1))


@dataclass(frozen=True, kw_only=True)
class BankTraining(Options):
    """What the server does with the samples that it keeps."""

    server_steps: int = option(100, "replay: optimizer steps per round", COUNT_OR_NONE)
    server_batch_size: int = option(64, "replay: samples per optimizer step", COUNT)


@dataclass(frozen=True, kw_only=True)
class CompressionOptions(Minibatch):
    """What the baselines compress, and how."""

    compression: Compression = field(default_factory=Compression)


@dataclass(frozen=True, kw_only=True)
class GradientOptions(CompressionOptions):
    """Compressed gradients, one optimizer step a round."""

    majority_vote: bool = option(False, "gradient, sign: bare signs and a vote")
    momentum_correction: float = option(
        0.0, "gradient, top-k and vote: momentum on the clients (set momentum = 0)", _MOMENTUM
    )


@dataclass(frozen=True, kw_only=True)
class LocalOptions(CompressionOptions):
    """Local training, federated averaging."""

    local_steps: int = option(10, "fedavg: steps of a client per round", COUNT)
    momentum: float = option(0.9, "momentum of sgd, beta1 of adam", _MOMENTUM)
    weight_decay: float = option(5e-4, "weight decay", COUNT_OR_NONE)


# Requests


@dataclass(frozen=True, kw_only=True)
class Request(Seeded):
    """What all requests have.

    Attributes
    ----------
    server_round, seed : int
        With the client's number they key every random number of the client.
    """

    server_round: int = required(int, "round", COUNT_OR_NONE)


@dataclass(frozen=True, kw_only=True)
class StreamingRequest(StreamingOptions, Request):
    """Draw a minibatch, filter and quantize it, and compress what that misses of its gradient."""

    mode: str = choice("kind of work", STREAMING)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.importance == "all" and self.keep_rate < 1:
            raise OptionError(
                "keep_rate",
                f"= {self.keep_rate} contradicts importance all, which keeps every sample: legal "
                f"is 1.0, or importance {', '.join(IMPORTANCES[1:])}",
            )

    @property
    def rule(self) -> str:
        """From scores to samples."""
        return PROBABILITY if self.selection == "auto" else self.selection

    @property
    def needs_model(self) -> bool:
        """Whether the client runs a model at all."""
        return self.needs_scores or bool(self.refinement)


@dataclass(frozen=True, kw_only=True)
class ReplayRequest(ReplayOptions, Request):
    """Send the most useful of the samples that the server does not have.

    Attributes
    ----------
    acknowledged : int or None
        Round of the client's last reply that the server could use, -1 for none. None: the server
        does not say, and every reply is taken to have arrived.
    """

    mode: str = choice("kind of work", REPLAY)
    acknowledged: int | None = option(None, "round of the last reply that arrived", Range(-1))

    @property
    def rule(self) -> str:
        """From scores to samples."""
        return TOP if self.selection == "auto" else self.selection

    @property
    def needs_model(self) -> bool:
        """Whether the client runs a model at all."""
        return self.needs_scores


@dataclass(frozen=True, kw_only=True)
class TrainingRequest(Minibatch, Request):
    """What requests to train have in common.

    Attributes
    ----------
    server_round : int
        >= 1; gives the place of the round's minibatches in the client's epochs.
    buffers : int
        Minibatches from which to take the statistics of batch normalization; with 0 none are
        sent.
    """

    server_round: int = required(int, "round", COUNT)
    buffers: int = option(0, "minibatches for the statistics of batch norm", COUNT_OR_NONE)


@dataclass(frozen=True, kw_only=True)
class GradientRequest(GradientOptions, TrainingRequest):
    """Send the compressed gradient of a minibatch."""

    mode: str = choice("kind of work", GRADIENT)

    def __post_init__(self) -> None:
        super().__post_init__()
        kind, correction = self.compression.kind, self.momentum_correction
        if kind == UNCOMPRESSED:
            problem = "= 'none' sends no gradient; 'fp32' sends it losslessly"
            raise OptionError("compressor", problem)
        if self.majority_vote and kind != "sign":
            raise OptionError("majority_vote", f"needs compressor sign, not {kind!r}")
        if correction and not (self.majority_vote or kind == "top-k"):
            raise OptionError(
                "momentum_correction",
                f"= {correction} needs compressor top-k or majority-vote, not {kind!r}",
            )

    def compressor(self) -> GradientCompressor:
        """Return what turns the gradient into bytes and back."""
        compressor = Ballot() if self.majority_vote else self.compression.compressor()
        assert compressor is not None
        return joined(compressor)


@dataclass(frozen=True, kw_only=True)
class LocalRequest(LocalOptions, TrainingRequest):
    """Train the model on local samples and send it, or its compressed change.

    Attributes
    ----------
    learning_rate : float
        Of all the round's steps.
    """

    mode: str = choice("kind of work", FEDAVG)
    learning_rate: float = required(float, "learning rate of the round", COUNT_OR_NONE)

    def compressor(self) -> GradientCompressor | None:
        """Return what turns the model's change into bytes and back; None: the model is sent."""
        compressor = self.compression.compressor()
        return None if compressor is None else joined(compressor)


# Replies


_TELEMETRY = "seconds_"


def _seconds() -> float:
    return option(0.0, "client's time, in seconds", COUNT_OR_NONE, telemetry=True)


@dataclass(frozen=True, kw_only=True)
class Reply(Options):
    """What all replies have.

    Attributes
    ----------
    client : int
        The client's own number (its partition).
    num_examples : int
        Samples that the client considered; its weight in averages.
    memory_bytes : int
        Error memory that the client keeps for its compressor.
    """

    client: int = required(int, "number of the client", COUNT_OR_NONE)
    num_examples: int = required(int, "samples considered", COUNT_OR_NONE)
    memory_bytes: int = option(0, "error memory", COUNT_OR_NONE, telemetry=True)

    @property
    def seconds(self) -> dict[str, float]:
        """The client's own time by stage."""
        names = [f.name for f in fields(self) if f.name.startswith(_TELEMETRY)]
        return {name.removeprefix(_TELEMETRY): getattr(self, name) for name in names}

    @classmethod
    def stages(cls) -> list[str]:
        """Return the names of the stages whose time a reply carries."""
        names = [f.name for f in fields(cls) if f.name.startswith(_TELEMETRY)]
        return [name.removeprefix(_TELEMETRY) for name in names]


@dataclass(frozen=True, kw_only=True)
class SampleReply(Reply):
    """Coded samples.

    Attributes
    ----------
    samples : bytes
        A `codec.SamplePayload`; empty when nothing is sent.
    num_sent : int
        Samples in it.
    remaining : int
        Samples left to send.
    refinement : bytes or None
        Compressed residual of the gradient.
    """

    samples: bytes = required(bytes, "sample payload")
    num_sent: int = required(int, "samples in the payload", COUNT_OR_NONE)
    remaining: int = required(int, "samples left to send", COUNT_OR_NONE)
    refinement: bytes | None = option(None, "compressed residual")
    seconds_importance: float = _seconds()
    seconds_encode: float = _seconds()
    seconds_refinement: float = _seconds()


@dataclass(frozen=True, kw_only=True)
class GradientReply(Reply):
    """A compressed gradient.

    Attributes
    ----------
    gradient : bytes
    buffers : bytes or None
        Statistics of batch normalization, see `codec.learning.batch_norm`.
    """

    gradient: bytes = required(bytes, "compressed gradient")
    buffers: bytes | None = option(None, "statistics of batch normalization")
    seconds_gradient: float = _seconds()
    seconds_compress: float = _seconds()


@dataclass(frozen=True, kw_only=True)
class LocalReply(Reply):
    """What goes with a locally trained model, or its compressed change.

    Attributes
    ----------
    delta : bytes or None
        Change of the trainable parameters; None where the whole model is sent.
    buffers : bytes or None
        As in `GradientReply`.
    """

    delta: bytes | None = option(None, "compressed change of the model")
    buffers: bytes | None = option(None, "statistics of batch normalization")
    seconds_train: float = _seconds()
    seconds_compress: float = _seconds()


REQUESTS: Mapping[str, type[Request]] = MappingProxyType(
    {
        STREAMING: StreamingRequest,
        REPLAY: ReplayRequest,
        GRADIENT: GradientRequest,
        FEDAVG: LocalRequest,
    }
)
