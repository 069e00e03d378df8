"""All kinds of data, one after the other: raw results, and the table that they give."""

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sim.data_kinds.kinds import KINDS, Kind
from sim.data_kinds.measure import Run, measure

Echo = Callable[[str], None]
_AUTO, _FINER, _LOSSLESS = "auto", "step 0.25", "lossless"
_MOST_POINTS, _MOST_OF_BYTES = 2.0, 1 / 3  # what the defaults are to lose and take at most


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes
    ----------
    name : str
        Of the files, without their ends.
    seeds : int
    train : int
        Samples to learn from.
    """

    name: str
    seeds: int
    train: int


FULL, QUICK = Scale("data-kinds", 3, 1600), Scale("data-kinds-quick", 1, 120)


def compare_kinds(
    folder: Path, scale: Scale = FULL, echo: Echo = print, kinds: Sequence[Kind] = KINDS
) -> list[Run]:
    """Train on every kind, with every codec and seed that the raw results lack; write the table.

    Parameters
    ----------
    folder : Path
        Of the results; created with its parents.
    scale : Scale
    echo : callable
        Called with each line.
    kinds : sequence of Kind
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{scale.name}.jsonl"
    done = {(run.kind, run.codec, run.seed) for run in read_runs(path)}
    for kind in kinds:
        for seed in range(scale.seeds):
            codecs = [_AUTO, *[_FINER] * kind.finer, _LOSSLESS]
            missing = [codec for codec in codecs if (kind.name, codec, seed) not in done]
            task = kind.make(seed, scale.train) if missing else None
            for codec in missing:
                assert task is not None
                run = measure(kind, codec, seed, task)
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(run)) + "\n")
                echo(_line(kind, run))
    runs = read_runs(path)
    lines = table(runs)
    path.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for line in lines:
        echo(line)
    return runs


def read_runs(path: Path) -> list[Run]:
    """Return the runs of a JSONL file; none if there is no such file."""
    if not path.exists():
        return []
    return [Run(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def table(runs: Sequence[Run]) -> list[str]:
    """Return the lines of the table, in Markdown; kinds that were not measured are left out."""
    rows = [
        row
        for kind in KINDS
        for codec in (_AUTO, _FINER)
        if (row := Row.of(kind, runs, codec)) is not None
    ]
    head = (
        "data", "a sample", "quantized", "lossless", "difference", "bytes", "lossless", "share",
        "variance kept", "target",
    )  # fmt: skip
    return [_joined(head), _joined(["---"] * len(head)), *map(_joined, map(Row.cells, rows))]


@dataclass(frozen=True)
class Row:
    """A kind with the runs of a codec and of the lossless one, by seed, in the same order.

    Attributes
    ----------
    kind : Kind
    quantized, lossless : list of Run
    """

    kind: Kind
    quantized: list[Run]
    lossless: list[Run]

    @classmethod
    def of(cls, kind: Kind, runs: Iterable[Run], codec: str = _AUTO) -> "Row | None":
        """Return the row of a kind; None if no seed has runs of both codecs."""
        found = {(run.codec, run.seed): run for run in runs if run.kind == kind.name}
        both = [
            (found[codec, seed], found[_LOSSLESS, seed])
            for seed in sorted({seed for _, seed in found})
            if (codec, seed) in found and (_LOSSLESS, seed) in found
        ]
        return cls(kind, [a for a, _ in both], [b for _, b in both]) if both else None

    @property
    def difference(self) -> list[float]:
        """Points by which the quantized samples are better, seed by seed."""
        pairs = zip(self.quantized, self.lossless, strict=True)
        return [100 * (ours.score - theirs.score) for ours, theirs in pairs]

    @property
    def share(self) -> float:
        """Bytes of the quantized samples, as a share of the lossless ones'."""
        return bytes_each(self.quantized) / bytes_each(self.lossless)

    @property
    def meets_accuracy(self) -> bool:
        """Whether at most 2 points are lost."""
        return statistics.mean(self.difference) >= -_MOST_POINTS

    @property
    def meets_bytes(self) -> bool:
        """Whether at most a third of the bytes is taken."""
        return self.share <= _MOST_OF_BYTES

    def cells(self) -> list[str]:
        """Return the cells of the table."""
        unit = " %" if self.kind.metric == "accuracy" else f" {self.kind.metric}"
        return [
            self.kind.title + self._unusual,
            self.kind.type,
            _spread([100 * run.score for run in self.quantized]) + unit,
            _spread([100 * run.score for run in self.lossless]),
            _spread(self.difference, sign="+"),
            f"{bytes_each(self.quantized):,.1f}",
            f"{bytes_each(self.lossless):,.1f}",
            f"{100 * self.share:.1f} %",
            f"{100 * statistics.mean(run.variance_kept for run in self.quantized):.1f} %",
            self._verdict(),
        ]

    @property
    def _unusual(self) -> str:
        codec = self.quantized[0].codec
        return "" if codec == _AUTO else f": {codec}"

    def _verdict(self) -> str:
        if all(run.variance_kept == 1 for run in self.quantized):
            return "lossless"
        missed = [
            *([] if self.meets_accuracy else ["accuracy"]),
            *([] if self.meets_bytes else ["bytes"]),
        ]
        return "missed: " + ", ".join(missed) if missed else "met"


def bytes_each(runs: Sequence[Run]) -> float:
    """Return the payload bytes of a sample."""
    return sum(run.payload_bytes for run in runs) / sum(run.samples for run in runs)


def _line(kind: Kind, run: Run) -> str:
    size = run.payload_bytes / run.samples
    return (
        f"{kind.name}, {run.codec}, seed {run.seed}: {kind.metric} {100 * run.score:.1f} %, "
        f"{size:,.1f} bytes a sample"
    )


def _spread(values: Sequence[float], sign: str = "") -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):{sign}.1f} ± {deviation:.1f}"


def _joined(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
