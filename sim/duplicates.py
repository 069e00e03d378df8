"""How well a bank recognises a sample that comes again in another code."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec import (
    CodecOptions,
    DecodedSamples,
    SampleSpec,
    decode_samples,
    encode_samples,
    variance_kept,
)
from fl_app.data import load
from sim import tables
from sim.data_kinds.tasks import wine_task
from strategies.sample_bank.arrays import held
from strategies.sample_bank.duplicates import Coded, Loss, are_one, comparable

SIZES = (100, 30)  # samples of a payload, the first time and the second
_PAIRS = 2000  # of other samples of one class, for each two codings
CODINGS = {
    "lossless": CodecOptions("lossless"),
    "step 0.3": CodecOptions(step=0.3),
    "step 0.5": CodecOptions(),
    "step 0.8": CodecOptions(step=0.8),
    "step 1.5": CodecOptions(step=1.5),
    "step 3": CodecOptions(step=3.0),
    "dithered 0.5": CodecOptions(quantizer="dithered"),
    "dithered 1.5": CodecOptions(quantizer="dithered", step=1.5),
    "JPEG q20": CodecOptions("jpeg", quality=20),
}
_PICTURES_ONLY = ("JPEG q20",)

Samples = tuple[NDArray[Any], NDArray[np.int64]]


@dataclass(frozen=True)
class Row:
    """Two codings of the same samples of a data set.

    Attributes
    ----------
    data, first, second : str
    kept : (float, float)
        Share of the variance that each keeps.
    recognised : float
        Share of the samples that are found to be the same.
    confused : float
        Share of pairs of other samples of one class that are, given equal tags.
    """

    data: str
    first: str
    second: str
    kept: tuple[float, float]
    recognised: float
    confused: float


def measure_duplicates(out: Path, data_dir: str, count: int, echo: Callable[[str], None]) -> None:
    """Measure all pairs of codings, print a table, and write ``duplicates.json``.

    Parameters
    ----------
    out : Path
        Created with its parents.
    data_dir : str
        Folder of CIFAR-10; empty: digits and a table alone.
    count : int
        Images of a data set.
    echo : callable
        Called with each line.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, data in _data_sets(data_dir, count):
        rows += list(_measured(name, data))
        echo(f"{name}: {len(data[0])} samples")
    table = tables.numbers("data", "first", "second", "kept %", "recognised %", "confused %")
    for row in rows:
        kept = " / ".join(f"{100 * share:.0f}" for share in row.kept)
        shares = f"{100 * row.recognised:.1f}", f"{100 * row.confused:.2f}"
        table.add_row(row.data, row.first, row.second, kept, *shares)
    for line in tables.lines(table):
        echo(line)
    text = json.dumps([asdict(row) for row in rows], indent=1)
    (out / "duplicates.json").write_text(text + "\n", encoding="utf-8")


def _data_sets(data_dir: str, count: int) -> Iterator[tuple[str, Samples]]:
    names = {"digits": ("mnist5k", "")} | ({"CIFAR-10": ("cifar10", data_dir)} if data_dir else {})
    for title, (name, folder) in names.items():
        images = load(name, "train", folder)
        chosen = np.random.default_rng(0).permutation(len(images.labels))[:count]
        yield title, (images.samples[chosen], images.labels[chosen])
    wines = wine_task(0, 0, standardized=False)
    both = [(wines.samples, wines.targets), (wines.test_samples, wines.test_targets)]
    samples, targets = (np.concatenate(parts) for parts in zip(*both, strict=True))
    yield "wine", (samples, targets)


def _measured(name: str, data: Samples) -> Iterator[Row]:
    samples, targets = data
    codings = [c for c in CODINGS if samples.ndim == 4 or c not in _PICTURES_ONLY]
    coded = {
        (title, size): _Split(data, CODINGS[title], size, key)
        for key, (title, size) in enumerate(product(codings, SIZES))
    }
    rng = np.random.default_rng(1)
    pairs = rng.integers(0, len(samples), (20 * _PAIRS, 2))
    other = (targets[pairs[:, 0]] == targets[pairs[:, 1]]) & (pairs[:, 0] != pairs[:, 1])
    pairs = pairs[other][:_PAIRS]
    for number, first in enumerate(codings):
        for second in codings[number:]:
            one, two = coded[second, SIZES[1]], coded[first, SIZES[0]]
            same = [_are_one(one, k, two, k) for k in range(len(samples))]
            confused = [_are_one(one, a, two, b) for a, b in pairs.tolist()]
            kept = two.kept, one.kept
            yield Row(name, first, second, kept, float(np.mean(same)), float(np.mean(confused)))


class _Split:
    """Samples that came in payloads of a size, in random order."""

    def __init__(self, data: Samples, codec: CodecOptions, size: int, key: int) -> None:
        samples, targets = data
        low, high = (0, 255) if samples.dtype == np.uint8 else (samples.min(), samples.max())
        spec = SampleSpec(
            samples.shape[1:], str(samples.dtype), float(low), float(high),
            int(targets.max()) + 1, codec=codec,
        )  # fmt: skip
        order = np.random.default_rng(key).permutation(len(samples))
        self.place: dict[int, tuple[Coded, int]] = {}
        shares = []
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            payload = encode_samples(samples[rows], targets[rows], spec, key=(0, key, start))
            decoded: DecodedSamples = decode_samples(payload)
            share = 1.0
            if not spec.sample_codec.lossless:
                share = variance_kept(samples[rows][:64], decoded.samples[:64])
            coded = comparable(held(spec, decoded, "auto"), Loss.of(spec, share))
            self.place |= {row: (coded, k) for k, row in enumerate(rows.tolist())}
            shares.append(share)
        self.kept = float(np.mean(shares))


def _are_one(first: _Split, row: int, second: _Split, other: int) -> bool:
    return are_one(*first.place[row], *second.place[other])
