"""What the server asks of a client in one round, validated."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clients.exchange import from_record, require_range
from clients.importance import IMPORTANCES, SCORED
from clients.selection import SELECTIONS
from codec import CodecError, CodecOptions, Refinement

MODES = ("sgd", "replay")


@dataclass(frozen=True)
class Instruction:
    """One round's instruction; on the wire, a config record with these names in kebab case.

    Attributes
    ----------
    server_round, seed : int, >= 0
        With the partition id they key every random number of the client.
    mode : str
        ``sgd``: quantize a fresh minibatch. ``replay``: send samples not sent before.
    codec : CodecOptions
        As bytes on the wire.
    batch_size : int
        ``sgd``: size of the minibatch, >= 1. ``replay``: most samples sent, 0 for no limit.
    importance : str
        One of `clients.importance.IMPORTANCES`.
    selection : str
        One of `clients.selection.SELECTIONS`.
    keep_rate : float
        In (0, 1]. ``sgd``: share of the minibatch kept (expected share, by probability;
        ``budget`` ignores it). ``replay``: share of all the client's samples that it ever
        sends.
    uniform_share : float
        In [0, 1]; share of the selection probability that is spread evenly.
    uplink_budget : int
        Most bytes of sample payload, 0 for no limit.
    refinement : str
        ``none``, ``auto`` or the name of a gradient compressor; ``sgd`` only.
    compressor_bits, compressor_density, compressor_rank, refinement_tolerance : int or float
        Its rate: see `codec.Refinement`.
    pool_factor : float
        ``replay`` with scores: samples scored per sample sent, >= 1.
    acknowledged : int or None
        ``replay``: round of the client's last reply that the server could use, -1 for none.
        None: the server does not say, and every reply is taken to have arrived.
    """

    server_round: int
    seed: int
    mode: str
    codec: CodecOptions
    batch_size: int
    importance: str = "all"
    selection: str = "probability"
    keep_rate: float = 1.0
    uniform_share: float = 0.2
    uplink_budget: int = 0
    refinement: str = "none"
    compressor_bits: int = 2
    compressor_density: float = 0.01
    compressor_rank: int = 2
    refinement_tolerance: float = 0.3
    pool_factor: float = 4.0
    acknowledged: int | None = None

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Instruction":
        """Read a config record; keys of no meaning here are left alone.

        Raises
        ------
        CodecError
            On a missing key, a wrong type or an illegal value; names what is legal.
        """
        return from_record(cls, record)

    def __post_init__(self) -> None:
        _require_one_of("mode", self.mode, MODES)
        _require_one_of("importance", self.importance, IMPORTANCES)
        _require_one_of("selection", self.selection, SELECTIONS)
        require_range("server-round", self.server_round, 0)
        require_range("seed", self.seed, 0)
        require_range("batch-size", self.batch_size, 1 if self.mode == "sgd" else 0)
        _require_share("keep-rate", self.keep_rate)
        require_range("uniform-share", self.uniform_share, 0, 1)
        require_range("uplink-budget", self.uplink_budget, 0)
        require_range("pool-factor", self.pool_factor, 1)
        if self.mode == "replay" and self.residual:
            raise CodecError(f"refinement = {self.refinement!r} needs mode sgd; in replay: none")
        if self.mode == "sgd" and self.importance == "all" and self.keep_rate < 1:
            raise CodecError(
                f"keep-rate = {self.keep_rate} contradicts importance all, which keeps every "
                f"sample: legal is 1.0, or importance {', '.join(IMPORTANCES[1:])}"
            )

    @property
    def needs_scores(self) -> bool:
        """Whether samples are scored by the model that comes with the instruction."""
        return self.importance in SCORED

    @property
    def needs_model(self) -> bool:
        """Whether the client runs a model at all."""
        return self.needs_scores or bool(self.residual)

    @property
    def residual(self) -> Refinement:
        """How the residual is compressed."""
        return Refinement(
            self.refinement,
            self.compressor_bits,
            self.compressor_density,
            self.compressor_rank,
            self.refinement_tolerance,
        )


def _require_one_of(key: str, value: str, legal: tuple[str, ...]) -> None:
    if value not in legal:
        raise CodecError(f"{key} = {value!r} is not one of {', '.join(legal)}")


def _require_share(key: str, value: float) -> None:
    if not 0 < value <= 1:
        raise CodecError(f"{key} = {value} outside (0, 1]")
