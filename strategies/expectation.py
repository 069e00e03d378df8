"""What a reply of samples may hold: what was agreed on, and what was instructed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from codec import INCLUSION_UNIT, CodecOptions, DecodeLimits, SampleSpec
from codec.gradients import GradientCompressor
from codec.messages import PROBABILITY, ReplayRequest, StreamingRequest
from codec.samples.choice import IMAGE_CANDIDATES, is_open, speeds
from codec.samples.options import AUTO
from codec.samples.rate_curve import knob_of, with_setting

_SINGLE = 1e-6  # what single precision, in which steps travel, may add


@dataclass(frozen=True)
class Expectation:
    """What the server can use, and what it has asked for.

    Attributes
    ----------
    shape : tuple[int, ...], optional
        Shape of one sample; ``None`` accepts any.
    like : SampleSpec, optional
        What was agreed on: kind of values and of targets must be the same, and ranges alike.
    outputs : int
        Outputs of the model: classes or floats of a target beyond it are refused; 0: unknown.
    max_examples : int
        Most that a client may claim as ``num-examples``; 0: unlimited.
    max_samples, max_bytes : int
        Most samples in a reply, and bytes of payloads; 0: unlimited.
    max_weight : float
        Largest importance weight.
    codec : CodecOptions, optional
        How samples are to be coded; ``None`` accepts any codec.
    settings : (float, float), optional
        Steps, or qualities, between which a client may choose; ``None``: the codec's own.
    chooses : bool
        Whether ``auto`` leaves the codec of pictures to a measurement of the client's.
    scale : str
        What the model sees of samples, see `codec.messages.ClientOptions`.
    identity_bytes : int
        Bytes of each sample's fingerprint, where they travel.
    compressor : GradientCompressor, optional
        Decoder of the refinement; ``None``: none was asked for and none is read.
    gradient_shapes : Sequence[tuple[int, ...]]
        Shapes of the refinement's arrays.
    limits : DecodeLimits
        What a payload may make the server allocate.
    """

    shape: tuple[int, ...] | None = None
    like: SampleSpec | None = None
    outputs: int = 0
    max_examples: int = 0
    max_samples: int = 0
    max_bytes: int = 0
    max_weight: float = INCLUSION_UNIT
    codec: CodecOptions | None = None
    settings: tuple[float, float] | None = None
    chooses: bool = False
    scale: str = "auto"
    identity_bytes: int = 0
    compressor: GradientCompressor | None = None
    gradient_shapes: Sequence[tuple[int, ...]] = ()
    limits: DecodeLimits = field(default_factory=DecodeLimits)

    @classmethod
    def of(
        cls,
        request: StreamingRequest | ReplayRequest,
        *,
        shape: tuple[int, ...] | None = None,
        gradient_shapes: Sequence[tuple[int, ...]] = (),
        limits: DecodeLimits | None = None,
    ) -> "Expectation":
        """Return what a request entitles the server to: the one place where options are enforced.

        Parameters
        ----------
        request : StreamingRequest or ReplayRequest
        shape, gradient_shapes, limits
            See the attributes.
        """
        common = cls(
            shape=shape,
            max_samples=_most_samples(request),
            max_bytes=request.uplink_budget,
            max_weight=_largest_weight(request),
            codec=request.codec,
            scale=request.scale,
            limits=limits or DecodeLimits(),
        )
        if isinstance(request, ReplayRequest):
            return replace(common, identity_bytes=request.identity_bytes, chooses=True)
        return replace(
            common,
            max_examples=request.batch_size,
            compressor=request.refinement.compressor(),
            gradient_shapes=gradient_shapes,
        )

    def legal_codecs(self, spec: SampleSpec) -> list[CodecOptions]:
        """Return how samples of a spec may be coded: as instructed, or as ``auto`` may mean."""
        if self.codec is None:
            return [spec.codec]
        told = self._set_as(spec.codec, self.codec)
        legal = [told.resolved(spec.shape, spec.dtype)]
        chosen = spec.codec.codec
        if self.chooses and chosen in IMAGE_CANDIDATES and is_open(told, spec):
            legal += [
                replace(told, codec=chosen, quality=spec.codec.quality, avif_speed=speed)
                for speed in speeds(told.avif_speed)
            ]
        table = spec.dtype == "float32" and len(spec.shape) == 1
        if told.codec == AUTO and table and told.relative_to == "spread":
            legal.append(replace(told, codec="dct"))  # where the rows are series
        return legal

    def _set_as(self, chosen: CodecOptions, told: CodecOptions) -> CodecOptions:
        """Return the codec with the step or quality that a client has chosen, if it might."""
        knob = knob_of(told)
        if self.settings is None or not knob:
            return told
        setting = float(getattr(chosen, knob))
        low, high = sorted(self.settings)
        lies_between = low * (1 - _SINGLE) <= setting <= high * (1 + _SINGLE)
        return with_setting(told, setting) if lies_between else told


def _draws(request: StreamingRequest | ReplayRequest) -> bool:
    """Whether clients draw samples one by one, and give them weights."""
    scored = isinstance(request, StreamingRequest) or request.needs_scores
    return scored and request.rule == PROBABILITY


def _most_samples(request: StreamingRequest | ReplayRequest) -> int:
    """Return the most samples that a client may send in a round; 0: unlimited."""
    if isinstance(request, StreamingRequest):
        kept = 1.0 if _draws(request) else request.keep_rate
        return min(request.batch_size, math.ceil(kept * request.batch_size))
    wanted = request.samples_per_round
    if not wanted or not _draws(request):
        return wanted
    return wanted + math.ceil(8 * math.sqrt(wanted) + 8)  # more than wanted, by chance


def _largest_weight(request: StreamingRequest | ReplayRequest) -> float:
    """Return the largest importance weight that an honest client gives a sample."""
    if not _draws(request):
        return 1.0
    if request.uplink_budget:
        return INCLUSION_UNIT  # few of many may fit
    if isinstance(request, ReplayRequest):
        rate = 1 / (request.pool_factor + 1)
    else:
        rate = request.keep_rate
    least = rate * (request.uniform_share if request.needs_scores else 1.0)
    if least == 1:
        return 1.0
    return INCLUSION_UNIT / max(1, math.ceil(INCLUSION_UNIT * least - 1))
