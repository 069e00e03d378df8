"""The strategies of the app, by name: what runs on the server, and what answers on a client.

Nothing here imports torch before a model is needed: a client reads this file, too.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import Context, Message

import clients
import clients.baselines
from codec import SampleSpec
from codec.messages import (
    FEDAVG,
    GRADIENT,
    REPLAY,
    STREAMING,
    AveragingOptions,
    BankTraining,
    BudgetOptions,
    GradientOptions,
    LocalOptions,
    OuterOptions,
    Participation,
    ReplayOptions,
    StreamingOptions,
)
from codec.options import values_of
from fl_app.config import RunConfig
from fl_app.images import ImageKind

if TYPE_CHECKING:
    from torch import nn

    from codec import Augmentation
    from strategies import ServerStrategy

    Factory = Callable[[], nn.Module]


@dataclass(frozen=True)
class AppStrategy:
    """One value of the key ``strategy``.

    Attributes
    ----------
    build : callable
        ``(config, model, kind of images, file of the bank) -> ServerStrategy``, on the server.
    answer : callable
        ``(msg, context, source, model factory, config) -> Message``, on a client.
    steps_per_round : callable
        ``(config) -> int``, optimizer steps.
    """

    build: "Callable[[RunConfig, nn.Module, ImageKind, Path | None], ServerStrategy]"
    answer: "Callable[[Message, Context, clients.SampleSource, Factory, RunConfig], Message]"
    steps_per_round: Callable[[RunConfig], int]


def augmentation(config: RunConfig) -> "Augmentation | None":
    """Return what minibatches go through where they are learned from."""
    from fl_app.augment import make_augmentation

    return make_augmentation(config.augment, config.dataset)


def _stepping(config: RunConfig, model: "nn.Module") -> dict[str, Any]:
    """Return the arguments of strategies whose server takes the optimizer's steps."""
    from fl_app.training import optimizer_factory, scheduler_factory

    steps = config.num_rounds * STRATEGIES[config.strategy].steps_per_round(config)
    return {
        "model": model,
        "optimizer": optimizer_factory(config),
        "scheduler": scheduler_factory(config, steps),
        "device": config.device,
    }


def _precision(config: RunConfig) -> dict[str, Any]:
    """Return what passes are computed in; in channels last, ResNet-9 is faster in fp32, too."""
    switch = {"fp32": False, "bf16": True}.get(config.precision, config.precision)
    faster = config.precision in ("bf16", "fastest")
    return {"amp": switch, "channels_last": True if faster else "auto"}


def _criterion(config: RunConfig) -> "nn.Module | None":
    if not config.label_smoothing:
        return None
    from torch import nn

    return nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)


def _participation(config: RunConfig) -> dict[str, Any]:
    """Return who takes part; the app's models take images in [0, 1], whatever their depth."""
    scale = "unit" if config.scale == "auto" else config.scale
    return values_of(config, Participation) | {"scale": scale}


def _sample_spec(kind: ImageKind) -> SampleSpec:
    return SampleSpec(kind.shape, kind.dtype, *kind.value_range, kind.classes)


def _replay(
    config: RunConfig, model: "nn.Module", kind: ImageKind, bank: Path | None
) -> "ServerStrategy":
    from strategies import QuantizedDataReplay

    options = values_of(config, ReplayOptions, BankTraining, BudgetOptions, AveragingOptions)
    if config.uplink_budget_total:
        options["samples_per_round"] = 0
    return QuantizedDataReplay(
        **_stepping(config, model),
        **_precision(config),
        criterion=_criterion(config),
        augment=augmentation(config),
        samples=_sample_spec(kind),
        class_names=kind.class_names,
        bank=bank,
        **options | _participation(config),
    )


def _streaming(
    config: RunConfig, model: "nn.Module", kind: ImageKind, _: Path | None
) -> "ServerStrategy":
    from strategies import QuantizedDataStreaming

    return QuantizedDataStreaming(
        **_stepping(config, model),
        **_precision(config),
        # A residual fits the plain samples that the client took it at.
        augment=None if config.refinement else augmentation(config),
        samples=_sample_spec(kind),
        class_names=kind.class_names,
        **values_of(config, StreamingOptions, AveragingOptions) | _participation(config),
    )


def _gradient(
    config: RunConfig, model: "nn.Module", _: ImageKind, __: Path | None
) -> "ServerStrategy":
    from strategies.baselines import GradientCompression

    return GradientCompression(
        **_stepping(config, model),
        buffers_every=config.eval_every,
        **values_of(config, GradientOptions, AveragingOptions) | _participation(config),
    )


def _fedavg(
    config: RunConfig, model: "nn.Module", _: ImageKind, __: Path | None
) -> "ServerStrategy":
    from fl_app.training import round_learning_rates
    from strategies.baselines import CompressedFedAvg

    rates = round_learning_rates(config)
    return CompressedFedAvg(
        model,
        learning_rate=lambda server_round: rates[server_round - 1],
        device=config.device,
        buffers_every=config.eval_every,
        **values_of(config, LocalOptions, OuterOptions, AveragingOptions) | _participation(config),
    )


def _send_samples(
    msg: Message,
    context: Context,
    source: clients.SampleSource,
    model: "Factory",
    config: RunConfig,
) -> Message:
    return clients.train(msg, context, source, model, state_dir=config.state_dir or None)


def _send_gradient(
    msg: Message,
    context: Context,
    source: clients.SampleSource,
    model: "Factory",
    config: RunConfig,
) -> Message:
    augment = augmentation(config)
    return clients.baselines.train_gradient(msg, context, source, model, augment=augment)


def _send_model(
    msg: Message,
    context: Context,
    source: clients.SampleSource,
    model: "Factory",
    config: RunConfig,
) -> Message:
    augment = augmentation(config)
    return clients.baselines.train_local(msg, context, source, model, augment=augment)


STRATEGIES: Mapping[str, AppStrategy] = {
    REPLAY: AppStrategy(_replay, _send_samples, lambda config: config.server_steps),
    STREAMING: AppStrategy(_streaming, _send_samples, lambda _: 1),
    GRADIENT: AppStrategy(_gradient, _send_gradient, lambda _: 1),
    FEDAVG: AppStrategy(_fedavg, _send_model, lambda config: config.local_steps),
}
