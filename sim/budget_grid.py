"""Test accuracy over the number of samples and the step of their coding, as the law needs it."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from codec import CodecOptions, SampleSpec, encode_samples
from fl_app.config import RunConfig
from fl_app.data import Images, load
from sim.jsonl import append_points, read_points
from sim.server_alone import make_server, rounds_alone
from strategies import SampleBank

_PAYLOAD = 1000  # samples of one


@dataclass(frozen=True)
class GridPoint:
    """One training on coded samples, tested on original ones.

    Attributes
    ----------
    dataset, model : str
    samples : int
        Number of training samples.
    step : float
        Of the codec; 0: original samples.
    bytes_per_sample : float
        Of the payloads.
    accuracy : float
        On the whole test split, as a fraction.
    uplink_bytes : int
        Of all payloads.
    optimizer_steps, seed : int
    """

    dataset: str
    model: str
    samples: int
    step: float
    bytes_per_sample: float
    accuracy: float
    uplink_bytes: int
    optimizer_steps: int
    seed: int

    @property
    def key(self) -> tuple[object, ...]:
        """What tells it from others before it is measured."""
        return self.dataset, self.model, self.samples, self.step, self.optimizer_steps, self.seed


def measure_grid(
    config: RunConfig,
    samples: Iterable[int],
    steps: Iterable[float],
    path: Path,
    echo: Callable[[str], None] = print,
) -> None:
    """Add the points of a grid to a file, each as it comes; those that are there are left out.

    Parameters
    ----------
    config : RunConfig
        Data set, model, training and seed.
    samples : iterable of int
        Numbers of training samples.
    steps : iterable of float
        Steps of the codec; 0: original samples.
    path : Path
        JSONL, one `GridPoint` a line.
    echo : callable
        Called with each point in words.
    """
    done = {point.key for point in read_points(path, GridPoint)}
    train = load(config.dataset, "train", config.data_dir, config.image_size)
    test = load(config.dataset, "test", config.data_dir, config.image_size)
    order = np.random.default_rng(config.seed).permutation(len(train.samples))
    for count, step in itertools.product(samples, steps):
        key = (config.dataset, config.model, count, step, _steps_of(config), config.seed)
        if key in done:
            continue
        bank, size = SampleBank(), 0
        for data in _coded(train.select(order[:count]), step):
            size += len(data) if isinstance(data, bytes) else data.samples.nbytes
            if isinstance(data, bytes):
                bank.add_payload(data)
            else:
                bank.add_arrays(data.samples, data.labels, low=0.0, high=255.0)
        (*_, last) = rounds_alone(make_server(config, test.kind, bank), config, test, test.kind)
        assert last.accuracy is not None
        point = GridPoint(
            config.dataset, config.model, count, step, size / count, last.accuracy, size,
            _steps_of(config), config.seed,
        )  # fmt: skip
        append_points(path, [point])
        echo(f"{point}")


def _steps_of(config: RunConfig) -> int:
    return config.num_rounds * config.server_steps


def _coded(images: Images, step: float) -> Iterator[bytes | Images]:
    """Yield images as payloads, sorted by label as clients send them; or as they are."""
    if not step:
        yield images
        return
    low, high = images.kind.value_range
    spec = SampleSpec(images.kind.shape, images.kind.dtype, low, high, images.kind.classes)
    spec = replace(spec, codec=CodecOptions(step=step))
    for start in range(0, len(images.samples), _PAYLOAD):
        part = images.select(np.arange(start, min(start + _PAYLOAD, len(images.samples))))
        part = part.select(np.argsort(part.labels, kind="stable"))
        yield encode_samples(part.samples, part.labels, spec).to_bytes()
