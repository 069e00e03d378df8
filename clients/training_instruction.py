"""What the server asks of a client that trains: what gradients and local training share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from clients.exchange import from_record, require_range
from codec import Compression


@dataclass(frozen=True, kw_only=True)
class TrainingInstruction:
    """One round's instruction; on the wire, a config record with these names in kebab case.

    Attributes
    ----------
    server_round : int
        >= 1; gives the place of the round's minibatches in the client's epochs.
    seed : int, >= 0
        With the partition id it keys every random number of the client.
    batch_size : int
        Samples in a minibatch, >= 1.
    compressor : str
        "none" or the name of a gradient compressor.
    compressor_bits, compressor_density, compressor_rank : int or float
        Its rate: see `codec.Compression`.
    buffers : int
        Minibatches from which to take the statistics of batch normalization, >= 0; with 0 none
        are sent.

    Raises
    ------
    CodecError
        On an illegal value; names what is legal.
    """

    server_round: int
    seed: int
    batch_size: int
    compressor: str = "none"
    compressor_bits: int = 2
    compressor_density: float = 0.01
    compressor_rank: int = 2
    buffers: int = 0

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Read a config record; entries of no meaning here are left alone.

        Raises
        ------
        CodecError
            On a missing entry, a wrong type or an illegal value; names what is legal.
        """
        return from_record(cls, record)

    def __post_init__(self) -> None:
        require_range("server-round", self.server_round, 1)
        require_range("seed", self.seed, 0)
        require_range("batch-size", self.batch_size, 1)
        require_range("buffers", self.buffers, 0)
        _ = self.compression  # raises if illegal

    @property
    def compression(self) -> Compression:
        """Compressor and rate of what is sent."""
        return Compression(
            self.compressor, self.compressor_bits, self.compressor_density, self.compressor_rank
        )
