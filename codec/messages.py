"""What the server asks of a client and what a client answers; every option is declared here once.

Four kinds of work, each with its options, the request of a round, and the reply:

=========  ====================  ====================  ===================
mode       options               request               reply
=========  ====================  ====================  ===================
describe   `ClientOptions`       `DescribeRequest`     `Description`
streaming  `StreamingOptions`    `StreamingRequest`    `SampleReply`
replay     `ReplayOptions`       `ReplayRequest`       `SampleReply`
gradient   `GradientOptions`     `GradientRequest`     `GradientReply`
fedavg     `LocalOptions`        `LocalRequest`        `LocalReply`
=========  ====================  ====================  ===================

The options are keys of the run config, keyword arguments of the strategies and entries of the
requests, under one name: ``keep_rate`` in Python is ``keep-rate`` elsewhere.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, ClassVar

from codec.errors import OptionError, PayloadError
from codec.gradients import GradientCompressor
from codec.gradients.compression import UNCOMPRESSED, Compression, Downlink
from codec.gradients.joined import joined
from codec.gradients.majority_vote import Ballot
from codec.gradients.model_stream import VERSION_BYTES
from codec.gradients.refinement import Refinement
from codec.identity import BANK_BYTES, FINGERPRINT_BYTES
from codec.options import (
    COUNT,
    COUNT_OR_NONE,
    POSITIVE,
    PROPER_SHARE,
    SHARE,
    Entry,
    Options,
    PackedOptions,
    Range,
    choice,
    option,
    own_fields,
    redeclared,
    required,
)
from codec.samples.choice import Choice
from codec.samples.options import CodecOptions
from codec.samples.payload import DecodeLimits

# Records of a message.
CONFIG, ARRAYS, PAYLOAD, METRICS = "config", "arrays", "payload", "metrics"

# Scores that a client computes with the model (`clients.importance` has a function for each).
SCORED = ("loss", "grad-norm", "margin", "entropy")
IMPORTANCES = ("all", "random", *SCORED)
PROBABILITY, TOP = "probability", "top"
SELECTIONS = (PROBABILITY, TOP)
MODEL, SCOUT = "model", "scout"
SGD, ADAMW = "sgd", "adamw"

DESCRIBE, STREAMING, REPLAY = "describe", "streaming", "replay"
CALIBRATE = "calibrate"
GRADIENT, FEDAVG = "gradient", "fedavg"

# No entry is empty: Flower's `message_size_mod` takes none that is.
_NO_RECEIPT = b"\0"
_MOMENTUM = Range(0, 0.999)
_SEED = Range(0, 2**32 - 1)  # what NumPy's and torch's generators take


# Options


@dataclass(frozen=True, kw_only=True)
class Seeded(Options):
    """Seed of a run."""

    seed: int = option(0, "seed of everything random", _SEED)


@dataclass(frozen=True, kw_only=True)
class ClientOptions(Seeded):
    """What a client is told in all modes.

    Attributes
    ----------
    scale : str
        What the model sees: samples in the units of the client's data set (``none``), or mapped
        from their range to [0, 1] (``unit``). ``auto``: ``unit`` for 8-bit images, as torchvision's
        ``ToTensor`` does, else ``none``.
    client_key : str
        What makes a client's random numbers its own: its ``node`` id, or its ``partition`` id,
        with which a simulation repeats itself.
    """

    scale: str = choice(
        "what the model sees: samples in their own units (none), or in [0, 1] (unit; auto: for "
        "8-bit images)",
        *("auto", "unit", "none"),
    )
    client_key: str = choice(
        "what a client's random numbers are keyed by (partition: repeatable in simulation)",
        *("node", "partition"),
    )


@dataclass(frozen=True, kw_only=True)
class Participation(ClientOptions):
    """Which nodes take part in a round."""

    fraction_train: float = option(
        1.0, "share of the connected nodes asked per round", PROPER_SHARE
    )
    min_available_nodes: int = option(1, "nodes that must be connected before a round", COUNT)
    min_train_nodes: int = option(1, "least number of nodes asked per round", COUNT)
    quorum: float = option(
        1.0,
        "share of the asked nodes whose replies end a round; others may come later",
        PROPER_SHARE,
    )
    request_window: int = option(
        0,
        "requests that are out at once (0 = no limit)",
        COUNT_OR_NONE,
    )


@dataclass(frozen=True, kw_only=True)
class AveragingOptions(Options):
    """What bounds the part of a single client in an average of gradients or models."""

    clip_norm: float = option(
        0.0,
        "largest norm of a client's gradient, or change of the model: longer ones are scaled down "
        "(0 = no limit)",
        COUNT_OR_NONE,
    )
    max_examples: int = option(
        1 << 20, "most samples that a client's model counts for in an average", COUNT
    )


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
        """Whether samples are scored, by a network that comes with the request."""
        return self.importance in SCORED


@dataclass(frozen=True, kw_only=True)
class SampleOptions(FilterOptions):
    """Which samples a client sends, and how they are coded."""

    auto_rule: ClassVar[str] = PROBABILITY  # what the selection ``auto`` stands for

    codec: CodecOptions = field(default_factory=CodecOptions)

    @property
    def rule(self) -> str:
        """From scores to samples."""
        return self.auto_rule if self.selection == "auto" else self.selection

    @property
    def weighs_samples(self) -> bool:
        """Whether samples count unequally, so that their losses are needed one by one."""
        return self.importance != "all" and self.rule == PROBABILITY


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
        0, "replay: most samples a client sends per round (0 = no limit)", COUNT_OR_NONE
    )
    scorer: str = choice(
        "replay: what scores samples: the model, or a small network of the server's beside it that "
        "travels in kilobytes and runs without torch",
        *(MODEL, SCOUT),
    )
    pool_factor: float = option(4.0, "replay: samples scored per sample sent", Range(1))
    identity_bytes: int = option(
        2,
        "replay: bytes of each sample's fingerprint that travel, so that the server knows "
        "duplicates (0 = none)",
        Range(0, FINGERPRINT_BYTES),
    )


@dataclass(frozen=True, kw_only=True)
class BudgetOptions(Options):
    """Bytes of a whole run, which the server divides between clients, samples and precision."""

    uplink_budget_total: int = option(
        0,
        "replay: bytes that all clients send in the whole run, such as '2MB'; the number of "
        "samples and their step follow (0 = none)",
        COUNT_OR_NONE,
        size=True,
    )


@dataclass(frozen=True, kw_only=True)
class BankTraining(Options):
    """What the server does with the samples that it keeps."""

    server_steps: int = option(100, "replay: optimizer steps per round", COUNT_OR_NONE)
    server_batch_size: int = option(64, "replay: samples per optimizer step", COUNT)
    ema_decay: float = option(
        0.0,
        "replay: share that a step keeps of the moving average of the weights, which is evaluated "
        "and saved (0 = no average)",
        Range(0, 0.99999),
    )
    calibration_nodes: int = option(
        0,
        "replay: nodes that tell, after the last round, what batch normalization sees of their "
        "original samples (0 = none); they run the model, and need torch",
        COUNT_OR_NONE,
    )
    scout_steps: int = option(
        200, "replay, scorer scout: optimizer steps of the scout per round", COUNT
    )
    scout_bits: int = option(
        5, "replay, scorer scout: bits of a weight before entropy coding", Range(2, 8)
    )


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
    local_optimizer: str = choice("fedavg: optimizer of a client's steps", SGD, ADAMW)
    momentum: float = option(0.9, "momentum of sgd, beta1 of adam", _MOMENTUM)
    weight_decay: float = option(5e-4, "weight decay", COUNT_OR_NONE)
    feedback: float = option(
        1.0,
        "fedavg: share of its compressor's error memory that a client keeps from round to round",
        SHARE,
    )


@dataclass(frozen=True, kw_only=True)
class OuterOptions(Options):
    """What the server of federated averaging does with the averaged change, and sends."""

    outer_learning_rate: float = option(
        1.0, "fedavg: learning rate of the server's step along the averaged change", POSITIVE
    )
    outer_momentum: float = option(0.0, "fedavg: Nesterov momentum of that step", _MOMENTUM)
    downlink: Downlink = field(default_factory=Downlink)

    def check_uplink(self, compression: Compression) -> None:
        """Raise `OptionError` where changes travel one way and whole models the other."""
        if self.downlink and not compression:
            raise OptionError(
                "downlink",
                f"= {self.downlink.kind!r} needs clients that send changes, too: set compressor, "
                "to fp32 if nothing is to be lost",
            )


@dataclass(frozen=True, kw_only=True)
class MixedOptions(Options):
    """A federation in which some devices may not share samples.

    They answer the same request with the model, trained on their own samples, or (streaming) with
    a compressed gradient; for that the request brings the model and how to train it.
    """

    mixed: bool = option(
        False, "take models, or gradients (streaming), of devices that share no samples"
    )
    local_steps: int = redeclared(LocalOptions, "local_steps", 10)


# Requests


def _json_object(text: str | bytes) -> dict[str, Any]:
    """Return what a JSON object holds; `ValueError` if the text is not one."""
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError(f"a JSON {type(found).__name__} where an object belongs")
    return found


@dataclass(frozen=True)
class Terms(PackedOptions):
    """What the server's model and data take; a client checks it before it codes a sample.

    Attributes
    ----------
    shape : tuple of int
        Of a sample, as the model takes it; empty: not known.
    outputs : int
        Classes, or floats in a target, that the model has outputs for; 0: not known.
    class_names : tuple of str
        The server's classes in the order of its labels: a client's own are mapped by name. Empty:
        labels are taken as they are.
    samples, values, values_per_byte : int
        Limits of one payload, see `codec.DecodeLimits`.
    codecs : tuple of str
        Image files that the server decodes, of those that codec ``auto`` may choose
        (`codec.samples.choice`).
    """

    shape: tuple[int, ...] = option((), "shape of a sample")
    outputs: int = option(0, "outputs of the model", COUNT_OR_NONE)
    class_names: tuple[str, ...] = option((), "names of the classes")
    samples: int = option(DecodeLimits.samples, "most samples in a payload", COUNT)
    values: int = option(DecodeLimits.values, "most numbers in a payload", COUNT)
    values_per_byte: int = option(
        DecodeLimits.values_per_byte, "most numbers in a payload for each of its bytes", COUNT
    )
    codecs: tuple[str, ...] = option(
        ("webp", "avif"), "image files that codec auto may choose, as the server decodes them"
    )

    @property
    def limits(self) -> DecodeLimits:
        """What the server decodes."""
        return DecodeLimits(self.samples, self.values, self.values_per_byte)

    def to_bytes(self) -> bytes:
        """Return what differs from the defaults, as JSON."""
        told = {
            name: getattr(self, name)
            for name, declared in own_fields(type(self)).items()
            if getattr(self, name) != declared.default
        }
        return json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Terms":
        """Read what `to_bytes` wrote; `PayloadError` if the bytes are not terms."""
        try:
            told = _json_object(data)
            return cls(**{name: told[name] for name in own_fields(cls) if name in told})
        except ValueError as error:
            raise PayloadError(f"terms of {len(data)} bytes: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Request(ClientOptions):
    """What all requests have.

    Attributes
    ----------
    server_round, seed : int
        With the client's key they determine every random number of the client.
    terms : Terms
        What the server can use.
    """

    terms: Terms = field(default_factory=Terms)

    server_round: int = required(int, "round", COUNT_OR_NONE)


@dataclass(frozen=True, kw_only=True)
class BankRequest(Request):
    """What a server with a bank says of it.

    Attributes
    ----------
    bank : bytes
        Id of a bank that outlives the run, `codec.identity.BANK_BYTES` long; it keys fingerprints,
        and the client remembers on its disk what it has sent there. Empty: the bank lives as long
        as the run.
    """

    bank: bytes = option(b"", "id of a durable bank")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.bank) not in (0, BANK_BYTES):
            raise OptionError("bank", f"has {len(self.bank)} bytes; legal: 0 or {BANK_BYTES}")


@dataclass(frozen=True, kw_only=True)
class DescribeRequest(BankRequest):
    """Say what the samples are, and send none.

    Attributes
    ----------
    curve_of : bytes
        `codec.CodecOptions` whose rate curve is wanted, see `codec.samples.rate_curve`; empty:
        none is.
    """

    mode: str = choice("kind of work", DESCRIBE)
    curve_of: bytes = option(b"", "codec whose rate curve is wanted")


@dataclass(frozen=True, kw_only=True)
class CalibrationRequest(Request):
    """Say what the model's batch normalization sees of the samples, and send none.

    Attributes
    ----------
    max_samples : int
        How many the statistics are of, at most.
    """

    mode: str = choice("kind of work", CALIBRATE)
    max_samples: int = option(512, "samples that the statistics are of, at most", COUNT)


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
    def needs_model(self) -> bool:
        """Whether the client runs a model at all."""
        return self.needs_scores or bool(self.refinement)


@dataclass(frozen=True, kw_only=True)
class ReplayRequest(ReplayOptions, BankRequest):
    """Send the most useful of the samples that the server does not have.

    Attributes
    ----------
    acknowledged : bytes or None
        Receipt (`codec.identity.receipt`) of the client's last reply that the server could use,
        empty for none. None: the server does not say, and every reply is taken to have arrived.
    scout : bytes or None
        The network that scores samples, see `codec.learning.scout_bytes`. None: there is none yet,
        and samples are sent in random order.
    finest : float
        How fine a step, or quality, a client may take where all its samples fit `uplink_budget`,
        to fill that; 0: the codec's own alone.
    """

    auto_rule = TOP

    mode: str = choice("kind of work", REPLAY)
    acknowledged: bytes | None = option(None, "receipt of the last reply that arrived")
    scout: bytes | None = option(None, "network that scores samples")
    finest: float = option(0.0, "finest step or quality that may fill the budget", COUNT_OR_NONE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.acknowledged == _NO_RECEIPT:
            object.__setattr__(self, "acknowledged", b"")
        if self.scorer == SCOUT and not self.needs_scores:
            raise OptionError(
                "scorer",
                f"= {SCOUT!r} has nothing to score: importance is {self.importance!r}; legal with "
                f"it: importance {', '.join(SCORED)}",
            )

    def to_entries(self) -> dict[str, Entry]:
        """Return the fields as entries of a message."""
        entries = super().to_entries()
        return entries | ({"acknowledged": _NO_RECEIPT} if self.acknowledged == b"" else {})

    @property
    def needs_model(self) -> bool:
        """Whether the client runs the server's model."""
        return self.needs_scores and self.scorer == MODEL


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
    versions : bytes
        Digests (`codec.gradients.model_stream.version_of`) of the models before and after each of
        `updates`, the last one of the model to train. The client keeps that. Empty: the model
        comes whole, and is not kept.
    updates : tuple of bytes
        Changes, in their order, from a model that the client should have to the one to train.
        None, and only one digest, where the model comes whole or the client should have it.
    """

    mode: str = choice("kind of work", FEDAVG)
    learning_rate: float = required(float, "learning rate of the round", COUNT_OR_NONE)
    versions: bytes = option(b"", "digests of models")
    updates: tuple[bytes, ...] = option((), "changes of the model")

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = not self.versions and not self.updates
        if not whole and len(self.versions) != VERSION_BYTES * (len(self.updates) + 1):
            raise OptionError(
                "versions",
                f"has {len(self.versions)} bytes; legal: {VERSION_BYTES} for the model before "
                f"{len(self.updates)} updates, and after each",
            )

    def compressor(self) -> GradientCompressor | None:
        """Return what turns the model's change into bytes and back; None: the model is sent."""
        compressor = self.compression.compressor()
        return None if compressor is None else joined(compressor)


# Replies


_TELEMETRY = "seconds_"
_REASONS, _REASON = 32, 200  # why samples are of no use: most reasons, and characters of each


def _seconds() -> float:
    return option(0.0, "client's time, in seconds", COUNT_OR_NONE, telemetry=True, metric=True)


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
    num_examples: int = required(int, "samples considered", COUNT_OR_NONE, metric=True)
    memory_bytes: int = option(0, "error memory", COUNT_OR_NONE, telemetry=True, metric=True)

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
    more : tuple of bytes
        Further payloads, where one would be too large.
    remaining : int
        Samples left to send.
    fingerprints : bytes
        The first bytes of each sample's fingerprint, as many as the request says, in the order of
        the samples; see `codec.identity`.
    growing : bool
        Whether more may come: the source says so, or has changed since the client met it.
    lacks_scout : bool
        Whether the request's scout changes one that the client does not have: the samples are in
        random order, and the next scout must be a whole one.
    refinement : bytes or None
        Compressed residual of the gradient.
    variance_kept : float
        Share of the variance of the samples sent that survives their coding, see
        `codec.variance_kept`; 1 where it is not measured.
    clipped : int
        Values that lay outside the range of the data set and were clipped to it.
    skipped : str
        Samples of no use, such as unreadable files, counted by reason: a JSON object; empty: none.
    notes : tuple of str
        What the server should tell its user.
    class_digest : str
        Digest of the class names of the data set, if the server did not state its own: two
        clients with different ones do not mean the same by a label.
    codec_choice : bytes
        How codec ``auto`` chose on this client, see `codec.samples.choice.Choice`; told once a run.
    """

    samples: bytes = required(bytes, "sample payload")
    more: tuple[bytes, ...] = option((), "further payloads")
    num_sent: int = required(int, "samples in the payloads", COUNT_OR_NONE, metric=True)
    remaining: int = required(int, "samples left to send", COUNT_OR_NONE)
    fingerprints: bytes = option(b"", "fingerprints of the samples")
    growing: bool = option(False, "whether the source may grow", telemetry=True)
    lacks_scout: bool = option(False, "whether the scout was of no use", telemetry=True)
    refinement: bytes | None = option(None, "compressed residual")
    variance_kept: float = option(
        1.0, "share of the variance that survives", SHARE, telemetry=True, metric=True
    )
    clipped: int = option(0, "values clipped", COUNT_OR_NONE, telemetry=True, metric=True)
    skipped: str = option("", "samples of no use, by reason", telemetry=True)
    notes: tuple[str, ...] = option((), "what to tell the user", telemetry=True)
    class_digest: str = option("", "digest of the class names", telemetry=True)
    codec_choice: bytes = option(b"", "how codec auto chose", telemetry=True)
    seconds_importance: float = _seconds()
    seconds_encode: float = _seconds()
    seconds_refinement: float = _seconds()

    def skipped_counts(self) -> dict[str, int]:
        """Return the numbers of samples of no use by reason; none where they are not legible."""
        try:
            counts = _json_object(self.skipped or "{}")
        except ValueError:
            return {}
        legible = {str(k)[:_REASON]: n for k, n in counts.items() if type(n) is int and n > 0}
        return dict(list(legible.items())[:_REASONS])

    def choice(self) -> Choice | None:
        """Return how the client chose its codec; None if it does not say, or not legibly."""
        try:
            return Choice.from_bytes(self.codec_choice) if self.codec_choice else None
        except PayloadError:
            return None


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
class Calibration(Reply):
    """What a model's batch normalization sees of a client's samples.

    Attributes
    ----------
    buffers : bytes
        Its statistics, see `codec.learning.batch_norm`.
    """

    buffers: bytes = required(bytes, "statistics of batch normalization")


@dataclass(frozen=True, kw_only=True)
class LocalReply(Reply):
    """What goes with a locally trained model, or its compressed change.

    Attributes
    ----------
    delta : bytes or None
        Change of the trainable parameters; None where the whole model is sent.
    buffers : bytes or None
        As in `GradientReply`.
    lacks_model : bool
        Whether the request's updates change a model that the client does not have: it has not
        trained, and must be sent a whole one.
    """

    delta: bytes | None = option(None, "compressed change of the model")
    lacks_model: bool = option(False, "whether the updates were of no use", telemetry=True)
    buffers: bytes | None = option(None, "statistics of batch normalization")
    seconds_train: float = _seconds()
    seconds_compress: float = _seconds()


@dataclass(frozen=True, kw_only=True)
class Description(Reply):
    """What a client's samples are.

    Attributes
    ----------
    num_examples : int
        All that the client has.
    samples : bytes
        Empty: who reads a `SampleReply` finds none here.
    shape : tuple of int
        Of a sample.
    dtype : str
        As in `codec.SampleSpec`.
    low, high : float
        Range of the values.
    classes, target_size : int
        As in `codec.SampleSpec`.
    class_names : tuple of str
        Of the data set, if it has them.
    whole : bool
        Whether targets are floats that are whole, so that they may be labels.
    pending : bytes
        Receipt of the last reply to this bank, while no request has acknowledged it.
    curve : bytes
        What samples take over the codec's setting, see `codec.samples.rate_curve`; empty: it was
        not asked for.
    """

    # No metric, as which it would take a record of its own.
    num_examples: int = required(int, "samples of the client", COUNT_OR_NONE)
    samples: bytes = option(b"", "none: samples are described, not sent")
    shape: tuple[int, ...] = option((), "shape of a sample")
    dtype: str = option("", "type of the values")
    low: float = option(0.0, "lowest value")
    high: float = option(1.0, "highest value")
    classes: int = option(0, "number of classes", COUNT_OR_NONE)
    target_size: int = option(0, "floats in a target", COUNT_OR_NONE)
    class_names: tuple[str, ...] = option((), "names of the classes")
    whole: bool = option(False, "whether float targets may be labels", telemetry=True)
    pending: bytes = option(b"", "receipt of a reply that was not acknowledged")
    curve: bytes = option(b"", "bytes and loss over the codec's setting", telemetry=True)


REQUESTS: Mapping[str, type[Request]] = MappingProxyType(
    {
        DESCRIBE: DescribeRequest,
        CALIBRATE: CalibrationRequest,
        STREAMING: StreamingRequest,
        REPLAY: ReplayRequest,
        GRADIENT: GradientRequest,
        FEDAVG: LocalRequest,
    }
)
