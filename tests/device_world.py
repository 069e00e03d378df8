"""A device in a world that loses things, for tests: its source, its state, its file, its server.

The device is the real handler, and the server keeps what reaches it: each sample is one number.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from numpy.typing import NDArray

from clients import train
from codec import CodecOptions, SamplePayload, decode_samples
from codec.identity import read_tags, receipt
from codec.messages import DescribeRequest, ReplayRequest

BANK = b"the bank"


def image(number: int) -> NDArray[np.uint8]:
    """Return an image that holds a number."""
    pixels = np.full((1, 4, 4), number % 251, np.uint8)
    pixels[0, 0, :2] = divmod(number, 256)
    return pixels


@dataclass
class Album:
    """Images by position, any of which may go or move; counts the readings.

    Attributes
    ----------
    numbers : list of int
        What the images hold.
    reads : Counter
        By number.
    growing : bool
    """

    numbers: list[int]
    reads: Counter[int] = field(default_factory=Counter)
    growing: bool = False

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        number = self.numbers[index]
        self.reads[number] += 1
        return image(number), number % 3


class KeyedAlbum(Album):
    """Images with keys of their own."""

    def item_keys(self, indices: NDArray[np.int64]) -> list[str]:
        """Return names that stay."""
        return [f"image {self.numbers[index]}" for index in indices]


@dataclass
class World:
    """One device and the server that it sends to.

    Attributes
    ----------
    source : object
        What the device has now.
    folder : Path
        Where it remembers.
    bank : bytes
        Id of the bank; empty: the device remembers in its state alone.
    options : dict
        Of the requests.
    drops_known : bool
        Whether the server drops samples whose fingerprint it has.
    """

    source: Any
    folder: Path
    bank: bytes = BANK
    node_id: int = 2**64 - 3
    options: dict[str, Any] = field(default_factory=dict)
    received: Counter[int] = field(default_factory=Counter)
    receipts: set[bytes] = field(default_factory=set)
    skipped: Counter[str] = field(default_factory=Counter)
    reply: dict[str, Any] = field(default_factory=dict)
    tags: set[int] = field(default_factory=set)
    drops_known: bool = False
    acknowledged: bytes = b""
    state: RecordDict = field(default_factory=RecordDict)
    round: int = 0

    @property
    def file(self) -> Path:
        """Where the device remembers."""
        return self.folder / f"{self.bank.hex()}.sqlite"

    def _send(self, request: Any) -> dict[str, Any]:
        content = RecordDict({"config": ConfigRecord(request.to_entries())})
        context = Context(1, self.node_id, {"partition-id": 0}, self.state, {})
        message = Message(content, self.node_id, "train")
        reply = train(message, context, self.source, classes=3, state_dir=self.folder)
        metrics = reply.content.metric_records.get("metrics", {})  # a description has none
        return {**reply.content.config_records["payload"], **metrics}

    def ask(self, *, lost: bool = False) -> list[int]:
        """Ask for samples, and return what arrives; `lost`: the reply does not."""
        self.round += 1
        own = {"samples_per_round": 4, "codec": CodecOptions("lossless"), "identity_bytes": 8}
        options: dict[str, Any] = {**own, **self.options}
        self.reply = reply = self._send(
            ReplayRequest(
                server_round=self.round,
                bank=self.bank,
                acknowledged=self.acknowledged,
                **options,
            )
        )
        return [] if lost else self.take(reply)

    def take(self, reply: dict[str, Any]) -> list[int]:
        """Take a reply in, and return the numbers that it holds."""
        payloads = (reply["samples"], *reply.get("more", ()))
        self.acknowledged = receipt(payloads)
        self.receipts.add(self.acknowledged)
        arrived = [number for payload in payloads if payload for number in _numbers(payload)]
        tags, _ = read_tags(reply.get("fingerprints", b""), len(arrived))
        known = self.tags if self.drops_known else set()
        self.received.update(
            number for number, tag in zip(arrived, tags.tolist(), strict=True) if tag not in known
        )
        self.tags.update(tags.tolist())
        self.skipped.update(json_counts(reply.get("skipped", "")))
        return arrived

    def meet(self) -> bytes:
        """Ask what the device has, as a server that does not know the node; return what pends."""
        pending = self._send(DescribeRequest(server_round=0, bank=self.bank)).get("pending", b"")
        self.acknowledged = pending if pending in self.receipts else b""
        return pending

    def restart(self, *, node_id: int | None = None) -> bytes:
        """Lose the state, perhaps come back under another id, and meet the server."""
        self.state = RecordDict()
        self.node_id = self.node_id if node_id is None else node_id
        return self.meet()

    def finish(self, most: int = 60) -> None:
        """Ask until nothing is left."""
        for _ in range(most):
            self.ask()
            if not self.reply["remaining"]:
                return
        raise AssertionError(f"{self.reply['remaining']} are still left")


def json_counts(text: str) -> dict[str, int]:
    """Return the counts of what was skipped."""
    counts: dict[str, int] = json.loads(text or "{}")
    return counts


def _numbers(payload: bytes) -> list[int]:
    pixels = decode_samples(SamplePayload.from_bytes(payload)).samples.astype(int)
    return [int(i) for i in pixels[:, 0, 0, 0] * 256 + pixels[:, 0, 0, 1]]
