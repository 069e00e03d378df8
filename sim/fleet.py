"""What a fleet of devices sends, and what its server has to do, on paper: arithmetic, no run.

Bytes and times of a sample are measured elsewhere, and given; nothing here grows but by products.
"""

import math
from dataclasses import dataclass

from sim import tables

DAY = 86_400  # seconds
# A photograph at 224 pixels by codec auto at step 0.5 (sim/results/codecs.jsonl), and the time that
# decoding it takes on one core (AVIF, 0.7 ms on a CPU of two cores with AVX-512).
PHOTOGRAPH, DECODE_MS = 2_353, 0.7
# Of a reply of a few samples: 510 B of content beside the samples, and Flower's envelope.
REPLY = 1_400
RESNET50 = 25_557_032  # weights
INT4 = 0.5  # bytes of a weight: DiLoCo's deltas, the smallest that train as well as whole ones


@dataclass(frozen=True)
class Fleet:
    """Devices that see new samples every day, and a server that trains on them.

    Attributes
    ----------
    devices : int
    samples : float
        That a device sends a day, >= 0.
    sample_bytes : float
        Of a sample, coded, its label in it.
    pixels : int
        Values of a decoded sample, a byte each.
    reply_bytes : float
        Of a reply, content and envelope, beside its samples.
    decode_ms : float
        Of a core, for a sample.
    weights : int
        Of the model, for what federated averaging would send.
    weight_bytes : float
        Of a weight in a delta.
    participations : float
        How often a day a device would take part in federated averaging.
    """

    devices: int = 1_000_000
    samples: float = 10
    sample_bytes: float = PHOTOGRAPH
    pixels: int = 3 * 224 * 224
    reply_bytes: float = REPLY
    decode_ms: float = DECODE_MS
    weights: int = RESNET50
    weight_bytes: float = INT4
    participations: float = 1

    @property
    def device_uplink(self) -> float:
        """Bytes that a device sends a day, in one reply."""
        return self.samples * self.sample_bytes + self.reply_bytes

    @property
    def uplink(self) -> float:
        """Bytes that all send a day."""
        return self.devices * self.device_uplink

    @property
    def arrivals(self) -> float:
        """Samples a second, over the day."""
        return self.devices * self.samples / DAY

    @property
    def decoding_cores(self) -> int:
        """Cores that decode as fast as samples arrive."""
        return math.ceil(self.arrivals * self.decode_ms / 1000)

    @property
    def bank(self) -> float:
        """Bytes that the bank grows by a day, as it is kept: coded."""
        return self.devices * self.samples * self.sample_bytes

    @property
    def decoded(self) -> float:
        """Bytes of the same, decoded."""
        return float(self.devices * self.samples * self.pixels)

    @property
    def averaging(self) -> float:
        """Bytes that a device would send a day in federated averaging."""
        return self.participations * (self.weights * self.weight_bytes + self.reply_bytes)

    @property
    def break_even(self) -> float:
        """Samples a day from which federated averaging would send less."""
        return max(0.0, self.averaging - self.reply_bytes) / self.sample_bytes


def report(fleet: Fleet) -> list[str]:
    """Return the table, for a terminal."""
    from fl_app.words import size  # imports NumPy, which the command line does without

    table = tables.numbers("a day", "")
    ratio = fleet.averaging / fleet.device_uplink
    for name, value in (
        ("devices", f"{fleet.devices:,}"),
        ("samples, all devices", f"{fleet.devices * fleet.samples:,.0f}"),
        ("uplink of a device", size(fleet.device_uplink)),
        ("uplink, all devices", size(fleet.uplink)),
        ("the same, mean rate", f"{8e-6 * fleet.uplink / DAY:,.3g} Mbit/s"),
        ("replies a second", f"{fleet.devices / DAY:,.3g}"),
        ("samples a second", f"{fleet.arrivals:,.4g}"),
        ("cores that decode as they arrive", f"{fleet.decoding_cores:,}"),
        ("the bank grows by", size(fleet.bank)),
        ("decoded, it would by", size(fleet.decoded)),
        ("federated averaging, uplink of a device", size(fleet.averaging)),
        ("over ours", f"{ratio:,.3g}x"),
        ("samples of a device for which both are equal", f"{fleet.break_even:,.0f}"),
    ):
        table.add_row(name, value)
    return tables.lines(table)
