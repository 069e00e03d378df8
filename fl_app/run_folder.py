"""What a run leaves behind: results, one line a round, a plot and the model."""

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from torch import nn

from codec.disk import hold
from fl_app.config import ConfigError
from fl_app.words import size

CONFIG, RUN_CONFIG, LOCK = "config.json", "run-config", ".run.lock"
_POLL_SECONDS = 0.2
# What a run that goes on may have of its own.
_MAY_CHANGE = (
    *("num-rounds", "target-accuracy", "round-timeout", "quorum", "request-window"),
    *("checkpoint-every", "resume", "min-available-nodes", "min-train-nodes", "device", "threads"),
    *("out-dir", "bank", "data-dir", "state-dir"),  # where things are
)
_VERSIONED = ("flwr", "numpy", "torch", "torchvision", "constriction")


@dataclass(frozen=True)
class RoundRecord:
    """State of a run after a round; bytes, samples and steps are totals so far.

    Attributes
    ----------
    round : int
        0 is the model before training.
    accuracy, loss : float or None
        On the test set, accuracy as a fraction; None when the round was not evaluated or the
        loss is not finite.
    steps : int
        Optimizer steps of the server.
    samples_sent : int
    uplink_bytes, downlink_bytes : int
        Serialized content of the messages of all clients.
    uplink_envelope_bytes, downlink_envelope_bytes : int
        What a SuperLink counts beyond the content.
    raw_pixel_bytes : int
        What the same samples take as raw uint8 pixels.
    fp32_gradient_bytes : int
        What uncompressed gradients would have taken, see `fp32_gradient_bytes`.
    """

    round: int
    accuracy: float | None
    loss: float | None
    steps: int
    samples_sent: int
    uplink_bytes: int
    downlink_bytes: int
    uplink_envelope_bytes: int
    downlink_envelope_bytes: int
    raw_pixel_bytes: int
    fp32_gradient_bytes: int

    def line(self, num_rounds: int) -> str:
        """Return the round as a log line."""
        line = (
            f"round {self.round}/{num_rounds}: accuracy {self.score()}, "
            f"up {size(self.uplink_bytes)}, down {size(self.downlink_bytes)}"
        )
        if self.uplink_bytes and self.fp32_gradient_bytes:
            times = self.fp32_gradient_bytes / self.uplink_bytes
            line += f", {times:,.{0 if times >= 10 else 1}f}x fewer up than fp32 gradients"
        return line

    def score(self) -> str:
        """Return the accuracy in words."""
        return "not evaluated" if self.accuracy is None else f"{100 * self.accuracy:.2f} %"

    def traffic(self) -> str:
        """Return content and envelope of both directions in words."""
        up, down = size(self.uplink_bytes), size(self.downlink_bytes)
        around_up = size(self.uplink_envelope_bytes)
        around_down = size(self.downlink_envelope_bytes)
        return f"content: {up} up, {down} down; envelope: {around_up} up, {around_down} down"


def fp32_gradient_bytes(parameters: int, node_steps: int) -> int:
    """Return the uplink of data-parallel training with uncompressed gradients.

    Every node that a round asked would send one float32 gradient of all `parameters` for each of
    the round's optimizer steps; `node_steps` is how many that makes over the run.
    """
    return 4 * parameters * node_steps


def run_folder_path(out_dir: str, now: datetime, dataset: str, strategy: str) -> Path:
    """Return the absolute run folder: `out_dir`, or ``runs/<time>-<dataset>-<strategy>``."""
    default = f"runs/{now:%Y%m%d-%H%M%S}-{dataset}-{strategy}"
    return Path(out_dir or default).expanduser().absolute()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that the result depends on."""
    return {"python": platform.python_version()} | {p: metadata.version(p) for p in _VERSIONED}


class RunFolder:
    """Writer of one run's files, and the only one while it is open.

    Parameters
    ----------
    path : Path
        Created with its parents; an earlier run's round lines there are replaced.
    config : Mapping, optional
        The run config, which is kept in ``config.json``.
    rounds : callable
        Returns those of the run that this one goes on with, see `read_rounds`; by default none.

    wait : float
        Seconds that another process, such as one that was just told to end, has to let go of it.

    Raises
    ------
    ConfigError
        If it cannot be written to, or is in use.
    """

    def __init__(
        self,
        path: Path,
        config: Mapping[str, Any] | None = None,
        rounds: Callable[[], Sequence[RoundRecord]] = tuple,
        wait: float = 0.0,
    ) -> None:
        self.path = path
        self.rounds: list[RoundRecord] = []
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(path, wait)
            before = rounds()
            if config is not None:
                write_config(path, config)
            place = path / "rounds.jsonl"
            new = place.with_suffix(".new")  # replaced at once: a kill loses no line
            new.write_text("".join(map(_as_line, before)), encoding="utf-8")
            new.replace(place)
            self.rounds += before
            self._lines = place.open("a", encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"out-dir = {str(path)!r} must be a folder that can be written to: "
                f"{error.strerror}; choose another, or leave it empty"
            ) from error

    def append_round(self, record: RoundRecord) -> None:
        """Add a round to ``rounds.jsonl``, at once readable by others."""
        self.rounds.append(record)
        self._lines.write(_as_line(record))
        self._lines.flush()

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write ``result.json``."""
        text = json.dumps(result, indent=2, allow_nan=False)
        (self.path / "result.json").write_text(text + "\n", encoding="utf-8")

    def write_model(self, model: nn.Module, config: Mapping[str, Any]) -> None:
        """Write ``model.safetensors``, the run config in its metadata."""
        from safetensors.torch import save_model

        save_model(
            model, str(self.path / "model.safetensors"), {"run-config": json.dumps(dict(config))}
        )

    def write_plot(self, title: str) -> None:
        """Write ``accuracy_vs_uplink.png`` from the rounds appended so far."""
        plot_accuracy(self.rounds, title, self.path / "accuracy_vs_uplink.png")

    def close(self) -> None:
        """Close ``rounds.jsonl``, and let others have the folder."""
        self._lines.close()
        self._lock.close()


def _locked(folder: Path, wait: float) -> TextIO:
    """Return a file whose lock keeps other processes out until it is closed, or they die."""
    file = (folder / LOCK).open("a+", encoding="utf-8")
    until = time.monotonic() + wait
    while True:
        try:
            hold(file.fileno())
        except BlockingIOError as error:
            if time.monotonic() < until:
                time.sleep(_POLL_SECONDS)
                continue
            file.seek(0)
            process = file.read().strip() or "?"
            file.close()
            raise ConfigError(
                f"out-dir = {str(folder)!r} is in use by process {process}: a run is going on "
                "there; wait until it has ended, or choose another folder"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        return file


def _as_line(record: RoundRecord) -> str:
    return json.dumps(asdict(record), allow_nan=False) + "\n"


def write_config(folder: Path, config: Mapping[str, Any], **more: Any) -> None:
    """Write ``config.json``: the run config, and what a launcher adds or has added to it."""
    known = read_config(folder) if has_config(folder) else {}
    text = json.dumps({**known, **more, RUN_CONFIG: dict(config)}, indent=2, allow_nan=False)
    new = (folder / CONFIG).with_suffix(".new")  # replaced at once: a kill leaves one that is whole
    new.write_text(text + "\n", encoding="utf-8")
    new.replace(folder / CONFIG)


def has_config(folder: Path) -> bool:
    """Whether a run has begun in a folder."""
    return (folder / CONFIG).is_file()


def read_config(folder: Path) -> dict[str, Any]:
    """Read what `write_config` wrote.

    Raises
    ------
    ConfigError
        If the folder has no such file.
    """
    path = folder / CONFIG
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot read {path} ({error}): only a run of this app can be resumed, in its folder"
        ) from error
    return dict(found)


def check_same_run(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise `ConfigError` unless a run config is one with which the run in a folder can go on."""
    then = read_config(folder)[RUN_CONFIG]
    differing = [
        f"{key} was {then.get(key)!r}, is {config.get(key)!r}"
        for key in sorted(then.keys() | config.keys())
        if then.get(key) != config.get(key) and key not in _MAY_CHANGE
    ]
    if differing:
        raise ConfigError(
            f"the run in {folder} cannot go on with another config: {'; '.join(differing)}. "
            "Start a new run for that; of use to it may be bank=FILE, the samples of this one"
        )
    if config["num-rounds"] < then["num-rounds"]:
        raise ConfigError(
            f"num-rounds was {then['num-rounds']}, is {config['num-rounds']}: a run that goes on "
            "may have more rounds, and no fewer"
        )


def read_rounds(folder: Path, last: int) -> list[RoundRecord]:
    """Return the rounds in ``rounds.jsonl`` up to one; a line that a kill cut off is dropped."""
    records: dict[int, RoundRecord] = {}
    path = folder / "rounds.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            record = RoundRecord(**json.loads(line))
        except (ValueError, TypeError):
            continue
        if record.round <= last:
            records[record.round] = record
    return [records[number] for number in sorted(records)]


def plot_accuracy(rounds: Sequence[RoundRecord], title: str, path: Path) -> None:
    """Plot test accuracy against cumulative uplink bytes.

    Two vertical lines say what the same run would have cost as raw pixels and as fp32 gradients.

    Parameters
    ----------
    rounds : sequence of RoundRecord
        In order; those not evaluated or before any uplink are left out.
    title : str
    path : Path
        PNG file to write.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    points = [
        (r.uplink_bytes, r.accuracy) for r in rounds if r.uplink_bytes and r.accuracy is not None
    ]
    references = _references(rounds)
    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    axes = figure.add_subplot(
        title=title, xlabel="uplink so far, all clients (bytes)", ylabel="test accuracy (%)"
    )
    if points:
        sizes, accuracies = zip(*points, strict=True)
        axes.plot(sizes, [100 * a for a in accuracies], "o-", color="tab:blue", markersize=4)
        axes.annotate(
            f"{100 * accuracies[-1]:.1f} %", (sizes[-1], 100 * accuracies[-1]),
            xytext=(8, -3), textcoords="offset points", color="tab:blue",
        )  # fmt: skip
        if max([sizes[-1], *references.values()]) > 20 * sizes[0]:
            axes.set_xscale("log")
    for (label, count), color in zip(references.items(), ("dimgray", "tab:red"), strict=False):
        axes.axvline(count, color=color, linestyle="--", linewidth=1)
        axes.annotate(
            f"{label}, {size(count)}", (count, 0.03), xycoords=axes.get_xaxis_transform(),
            xytext=(-4, 0), textcoords="offset points", ha="right", rotation=90, fontsize=8,
            color=color,
        )  # fmt: skip
    axes.xaxis.set_major_formatter(EngFormatter("B"))
    axes.set_ylim(0, 102)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _references(rounds: Sequence[RoundRecord]) -> dict[str, int]:
    if not rounds or not rounds[-1].uplink_bytes:
        return {}
    last = rounds[-1]
    sizes = {
        "same samples as raw pixels": last.raw_pixel_bytes,  # none in runs that send no samples
        "fp32 gradients, same steps": last.fp32_gradient_bytes,
    }
    return {label: size for label, size in sizes.items() if size}
