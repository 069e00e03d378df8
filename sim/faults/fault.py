"""What a kind of fault is, on either engine."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sim.faults.bed import PER_ROUND, Size
from sim.run_config import ConfigValue

PROCESSES, FLOWER = "processes", "flower"  # engines

_SPARE = 8  # rounds more than needed, as a reply is lost here and there


@dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Attributes
    ----------
    name : str
    inject : callable
        ``(bed, number)``: runs the server to its end, and injects so many faults meanwhile; the
        bed is the engine's (`sim.faults.federation.Federation` or
        `sim.faults.deployment.Deployment`).
    number, quick : int
        Faults in a full run, and in a quick one (0: left out).
    rounds : int
        In which each device sends its samples, if nothing happens.
    rounds_each : float
        Rounds more for each fault.
    slack : int
        How many times that many a run has.
    config : mapping
        Run config.
    engine : str
        `PROCESSES` or `FLOWER`.
    devices : int
    with_keys : bool
        Whether Flower's SuperNodes have keys.
    """

    name: str
    inject: Callable[[Any, int], None]
    number: int
    quick: int = 1
    rounds: int = 4
    rounds_each: float = 0.7  # a mishap befalls one of three devices
    slack: int = 2
    config: Mapping[str, ConfigValue] = field(default_factory=dict)
    engine: str = PROCESSES
    devices: int = 3
    with_keys: bool = False

    def size(self, number: int) -> Size:
        """Return how large a federation is: there must be rounds enough for the faults."""
        rounds = self.rounds + round(self.rounds_each * number)
        return Size(self.devices, PER_ROUND * rounds, self.slack * rounds + _SPARE)
