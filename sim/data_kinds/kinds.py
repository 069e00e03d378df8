"""The kinds of data, in the order of the table."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from codec import Criterion
from sim.data_kinds import signals, tasks
from sim.data_kinds.networks import (
    ChannelsFirst,
    image_network,
    row_network,
    series_network,
    word_network,
)
from sim.data_kinds.tasks import Convert, Signal, Task

MakeTask = Callable[[int, int], Task]
Network = Callable[[], nn.Module]


@dataclass(frozen=True)
class Kind:
    """A kind of data.

    Attributes
    ----------
    name : str
        In the raw results.
    title, type : str
        In the table: what it is, and dtype and shape of a sample.
    make : callable
        ``(seed, train) -> Task``.
    network : callable
        ``() -> nn.Module``.
    metric : str
        ``accuracy``, ``F1`` or ``R²``.
    criterion : callable, optional
        Default: what the strategy takes by itself.
    finer : bool
        Whether half the step is measured too, as the defaults lose about what they may.
    """

    name: str
    title: str
    type: str
    make: MakeTask
    network: Network
    metric: str = "accuracy"
    criterion: Criterion | None = None
    finer: bool = False


def _digits(name: str, title: str, dtype: str, convert: Convert) -> Kind:
    make = partial(tasks.digit_task, convert)
    return Kind(name, title, f"{dtype} (1, 28, 28)", make, partial(image_network, 1, 10))


def _signals(
    name: str, title: str, kind: str, make: Signal, network: Network, *, finer: bool = False
) -> Kind:
    return Kind(name, title, kind, partial(tasks.signal_task, make), network, finer=finer)


def _without_channel() -> nn.Module:
    return image_network(1, 10, nn.Unflatten(1, (1, 28)))


def _channels_last() -> nn.Module:
    return image_network(3, 10, ChannelsFirst())


def _single_series() -> nn.Module:
    return series_network(1, signals.BEATS, nn.Unflatten(1, (1, 160)))


_OF_WINE, _OF_HOUSES = partial(row_network, 13, 3), partial(row_network, 13, 1)

KINDS = (
    _digits("8-bit", "8-bit images", "uint8", tasks.grey),
    Kind(
        "8-bit-hw",
        "8-bit images without a channel",
        "uint8 (28, 28)",
        partial(tasks.digit_task, tasks.plain),
        _without_channel,
    ),
    Kind(
        "8-bit-hwc",
        "8-bit colour, channels last",
        "uint8 (28, 28, 3)",
        partial(tasks.digit_task, tasks.coloured),
        _channels_last,
    ),
    _digits("low-contrast", "low contrast: 12 grey levels", "uint8", tasks.low_contrast),
    _digits("12-bit", "12-bit images", "uint16", partial(tasks.photographed, 12)),
    _digits("16-bit", "16-bit images", "uint16", partial(tasks.photographed, 16)),
    _digits("normalized", "images less mean, by deviation", "float32", tasks.normalized),
    _digits("unit", "images in [0, 1]", "float32", tasks.unit),
    _signals(
        "bands",
        "13 bands of a satellite",
        "uint16 (13, 16, 16)",
        signals.scenes,
        partial(image_network, 13, signals.COVERS),
        finer=True,
    ),
    _signals(
        "series-ct",
        "series: acceleration, m/s²",
        "float32 (3, 128)",
        signals.activities,
        partial(series_network, 3, signals.ACTIVITIES),
    ),
    _signals(
        "series-t", "series: heart beats, mV", "float32 (160,)", signals.beats, _single_series
    ),
    _signals(
        "spectrogram",
        "log-mel spectrogram, dB",
        "float32 (1, 40, 48)",
        signals.vowels,
        partial(image_network, 1, signals.VOWELS),
        finer=True,
    ),
    Kind(
        "table",
        "table, standardized",
        "float32 (13,)",
        partial(tasks.wine_task, standardized=True),
        _OF_WINE,
    ),
    Kind(
        "table-raw",
        "table, columns of 0.1 to 1,680",
        "float32 (13,)",
        partial(tasks.wine_task, standardized=False),
        _OF_WINE,
    ),
    Kind("regression", "table, float targets", "float32 (13,)", tasks.house_task, _OF_HOUSES, "R²"),
    Kind(
        "multi-label",
        "8-bit images, several labels each",
        "uint8 (1, 28, 56)",
        tasks.pair_task,
        partial(image_network, 1, 10),
        "F1",
        nn.BCEWithLogitsLoss(),
        finer=True,
    ),
    _signals(
        "tokens",
        "tokens, lossless by default",
        "int64 (24,)",
        signals.sentences,
        partial(word_network, signals.WORDS, signals.TOPICS),
    ),
)
