"""The server of the app: configuration, model, strategy, results."""

import contextlib
import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from logging import INFO, WARNING
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result

from codec.messages import REPLAY
from codec.packages import needed_packages, require
from codec.samples.choice import Choice
from fl_app.config import RunConfig, check_classes
from fl_app.data import Images, MissingSplit, describe, load
from fl_app.images import ImageKind
from fl_app.models import build_model
from fl_app.registry import STRATEGIES
from fl_app.report import try_report
from fl_app.run_folder import (
    RoundRecord,
    RunFolder,
    check_same_run,
    fp32_gradient_bytes,
    has_config,
    read_rounds,
    run_folder_path,
    versions,
)
from fl_app.run_log import (
    OrderlyLog,
    RoundClock,
    failures_of,
    orderly_log,
    summary_lines,
)
from strategies import QuantizedDataReplay, ServerStrategy
from strategies.checkpoint import has_checkpoint, read_checkpoint
from strategies.errors import RunFailed
from strategies.ledger import DOWNLINK, UPLINK
from strategies.server_strategy import is_due

if TYPE_CHECKING:
    from torch import nn

_LOCK_SECONDS = 10.0  # that the process before has to end
_SMALL_MODEL = 1_000_000  # parameters

app = ServerApp()


@app.main()
@needed_packages()
def main(grid: Grid, context: Context) -> None:
    """Run the strategy that the run config asks for and write the run folder."""
    require("torchvision", "safetensors", "matplotlib")  # else missed when the run has ended
    started = time.perf_counter()
    config = RunConfig.from_run_config(context.run_config)
    with orderly_log() as journal:
        test = load_test(config)
        kind = test.kind if test else describe(config.dataset, config.data_dir, config.image_size)
        check_classes(config.dataset, kind.classes)
        path = run_folder_path(config.out_dir, datetime.now(UTC), config.dataset, config.strategy)
        with contextlib.ExitStack() as stack:
            check_resumable(path, config)
            folder = stack.enter_context(contextlib.closing(open_folder(path, config)))
            log(INFO, "run folder: %s", path)
            strategy = make_strategy(config, kind, bank_path(config, path))
            stack.callback(strategy.close)
            set_threads(config.threads, strategy.model)
            laps = run_rounds(grid, strategy, config, test, kind, folder, journal)
            seconds = {"total": time.perf_counter() - started, **strategy.book.seconds}
            write_results(folder, strategy, config, seconds, laps)
        # Runs that are measured keep nothing, and are not looked at.
        report = try_report(path) if config.checkpoint_every else None
        for line in summary_lines(strategy.book, folder.rounds[-1], seconds, str(path)):
            log(INFO, line)
        if report is not None:
            log(INFO, "report: %s", report)


def run_rounds(
    grid: Grid,
    strategy: ServerStrategy,
    config: RunConfig,
    test: Images | None,
    kind: ImageKind,
    folder: RunFolder,
    journal: OrderlyLog,
) -> dict[int, float]:
    """Run the strategy; add every round to the folder and to the log.

    Returns
    -------
    dict of int to float
        Seconds that each round took, its evaluation included.

    Raises
    ------
    RunFailed
        If nothing was learned, or the model has diverged.
    """
    before = folder.rounds[-1].round if folder.rounds else 0
    clock, failures = RoundClock(config.num_rounds, before), strategy.failures.copy()

    def evaluate(server_round: int, _: ArrayRecord) -> MetricRecord | None:
        nonlocal failures
        due = is_due(server_round, config.eval_every, config.num_rounds)
        record = measure(strategy, server_round, test, kind, evaluated=due, flip=config.test_flip)
        folder.append_round(record)
        journal.next_round()
        failed = failures_of(failures, strategy.failures)
        failures = strategy.failures.copy()
        log(INFO, record.line(config.num_rounds) + failed + clock.lap(server_round))
        check_learning(record, config)
        scores = {"accuracy": record.accuracy, "loss": record.loss}
        return MetricRecord({k: v for k, v in scores.items() if v is not None})

    if config.target_accuracy and test is None:
        log(WARNING, "target-accuracy has no effect: there are no test images")

    def should_stop(server_round: int, result: Result) -> bool:
        scores = result.evaluate_metrics_serverapp.get(server_round, MetricRecord())
        reached = cast(float, scores.get("accuracy", 0.0))
        return 0 < config.target_accuracy <= reached

    strategy.start(
        grid,
        num_rounds=config.num_rounds,
        timeout=config.round_timeout,
        evaluate_fn=evaluate,
        should_stop=should_stop,
        checkpoint=folder.path if config.checkpoint_every else None,
        checkpoint_every=config.checkpoint_every or 1,
        resume=folder.path if goes_on(config, folder.path) else None,
    )
    if not strategy.steps_taken:
        raise RunFailed(f"no optimizer step was taken: {strategy.book.why()}")
    return clock.seconds


def goes_on(config: RunConfig, path: Path) -> bool:
    """Whether there is a checkpoint to go on from; a run that was killed early has none yet."""
    return config.resume and has_checkpoint(path)


def check_resumable(path: Path, config: RunConfig) -> None:
    """Raise `ConfigError` if the run in a folder cannot go on with a config.

    One that was killed before it had written its config begins again: who restarts it cannot know.
    """
    if config.resume and (has_config(path) or not path.is_dir()):
        check_same_run(path, config.to_run_config())


def open_folder(path: Path, config: RunConfig) -> RunFolder:
    """Return the run folder; of a run that goes on with its rounds up to the checkpoint.

    Raises
    ------
    ConfigError
        If it cannot be written to.
    CheckpointError
        If its checkpoint is damaged.
    """
    entries = config.to_run_config()
    if not goes_on(config, path):
        return RunFolder(path, entries)
    return RunFolder(
        path,
        entries,
        lambda: read_rounds(path, read_checkpoint(path).server_round),
        wait=_LOCK_SECONDS,
    )


def bank_path(config: RunConfig, folder: Path) -> Path | None:
    """Return the file that keeps the samples; None: they live in memory."""
    if config.strategy != REPLAY:
        return None
    if config.bank:
        return Path(config.bank).expanduser().absolute()
    return folder / "bank.sqlite" if config.checkpoint_every else None


def check_learning(record: RoundRecord, config: RunConfig) -> None:
    """Raise `RunFailed` if a round's test loss is not finite: such a model never recovers."""
    if record.accuracy is not None and record.loss is None:
        raise RunFailed(
            f"the test loss is not finite after round {record.round}: training has diverged; lower "
            f"learning-rate = {config.learning_rate:g}"
        )


def load_test(config: RunConfig) -> Images | None:
    """Return the test images; None, and a warning, where the data set was left without."""
    try:
        return load(config.dataset, "test", config.data_dir, config.image_size)
    except MissingSplit as error:
        if not error.other:
            raise
        log(WARNING, "no test images, so the model is not evaluated: %s", error)
        return None


def set_threads(threads: int, model: "nn.Module") -> None:
    """Set torch's CPU threads; 0 means 1 for a small model and torch's choice for others.

    Threads gain a small model little, and slow it down several times when other processes,
    such as clients on the same machine, want the cores too.
    """
    import torch

    parameters = sum(parameter.numel() for parameter in model.parameters())
    if threads or parameters < _SMALL_MODEL:
        torch.set_num_threads(threads or 1)


def make_strategy(config: RunConfig, kind: ImageKind, bank: Path | None = None) -> ServerStrategy:
    """Build the strategy of a run, its model made for images of a kind.

    Parameters
    ----------
    config : RunConfig
    kind : ImageKind
    bank : Path, optional
        File of the samples that are received; by default they live in memory.

    Raises
    ------
    ConfigError
        If there are fewer than two classes.
    """
    check_classes(config.dataset, kind.classes)
    model = build_model(
        config.model,
        kind.shape,
        kind.classes,
        stem=config.stem,
        width=config.width,
        seed=config.seed,
    )
    return STRATEGIES[config.strategy].build(config, model, kind, bank)


def accuracy(strategy: ServerStrategy, test: Images, *, flip: bool = False) -> tuple[float, float]:
    """Return loss and accuracy on test images, as a fraction, in the units of the training."""
    low, high = (0.0, 1.0) if strategy.request.scale == "none" else test.value_range
    return strategy.server_model.evaluate(test.samples, test.labels, low=low, high=high, flip=flip)


def measure(
    strategy: ServerStrategy,
    server_round: int,
    test: Images | None,
    kind: ImageKind,
    *,
    evaluated: bool = True,
    flip: bool = False,
) -> RoundRecord:
    """Return the state of a run after a round; `flip` as in `ServerModel.evaluate`."""
    server, ledger = strategy.server_model, strategy.ledger
    loss = share = None
    if evaluated and test:
        loss, share = accuracy(strategy, test, flip=flip)
    parameters = sum(parameter.numel() for parameter in server.trainable())
    return RoundRecord(
        round=server_round,
        accuracy=share,
        loss=loss if loss is not None and math.isfinite(loss) else None,
        steps=strategy.steps_taken,
        samples_sent=strategy.book.samples_sent,
        uplink_bytes=ledger.uplink_bytes,
        downlink_bytes=ledger.downlink_bytes,
        uplink_envelope_bytes=ledger.envelope_bytes(UPLINK),
        downlink_envelope_bytes=ledger.envelope_bytes(DOWNLINK),
        raw_pixel_bytes=strategy.book.samples_sent * kind.nbytes,
        fp32_gradient_bytes=fp32_gradient_bytes(parameters, strategy.book.node_steps),
    )


def budget_of(strategy: ServerStrategy) -> dict[str, object]:
    """Return plan and outcome of a budget of the whole run, if there is one."""
    dial = strategy.dial if isinstance(strategy, QuantizedDataReplay) else None
    return {} if dial is None else {"budget": dial.report(strategy.ledger.uplink_bytes)}


def _choices(found: Mapping[int, Choice]) -> dict[str, Any]:
    """Return how codec ``auto`` chose, by node, as JSON."""
    return {str(node): {"codec": choice.codec, **asdict(choice)} for node, choice in found.items()}


def _nodes(strategy: ServerStrategy) -> dict[str, Any]:
    """Return bytes in both directions, and failures, of each node."""
    up, down = (strategy.ledger.node_bytes(way) for way in (UPLINK, DOWNLINK))
    failures = strategy.book.failures_by_node
    return {
        str(node): {
            "uplink_bytes": up.get(node, 0),
            "downlink_bytes": down.get(node, 0),
            "failures": failures.get(node, {}),
        }
        for node in sorted({*up, *down, *failures})
    }


def write_results(
    folder: RunFolder,
    strategy: ServerStrategy,
    config: RunConfig,
    seconds: dict[str, float],
    round_seconds: dict[int, float],
) -> None:
    """Write result, plot and model of a finished run."""
    last, ledger = folder.rounds[-1], strategy.ledger
    clients = len(ledger.node_bytes())
    run_config = config.to_run_config()
    folder.write_result(
        {
            "accuracy": last.accuracy,
            "loss": last.loss,
            "rounds": last.round,
            "clients": clients,
            "samples_sent": last.samples_sent,
            "uplink_bytes": last.uplink_bytes,
            "downlink_bytes": last.downlink_bytes,
            "envelope_bytes": {
                UPLINK: last.uplink_envelope_bytes,
                DOWNLINK: last.downlink_envelope_bytes,
            },
            "bytes_per_sample": last.uplink_bytes / max(1, last.samples_sent),
            "sections": ledger.sections(),
            "downlink_sections": ledger.sections(DOWNLINK),
            "nodes": _nodes(strategy),
            "entropy_bytes": ledger.entropy_bytes,
            "fp32_gradient_bytes": last.fp32_gradient_bytes,
            "client_memory_bytes": strategy.book.client_memory_bytes,
            "variance_kept": strategy.book.variance_kept,
            "skipped": dict(strategy.book.skipped),
            "clipped": strategy.book.clipped,
            "codec_choices": _choices(strategy.book.codec_choices),
            "duplicates": strategy.book.duplicates,
            "late": strategy.book.late,
            "seconds": seconds,
            "round_seconds": round_seconds,
            "config": run_config,
            "seed": config.seed,
            "versions": versions(),
            "failures": dict(strategy.failures),
            **budget_of(strategy),
        }
    )
    folder.write_plot(f"{config.dataset}, {config.strategy}, {clients} clients")
    folder.write_model(strategy.server_model.inference_model, run_config)
