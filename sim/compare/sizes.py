"""Size of one message of a baseline, measured and in theory."""

from pathlib import Path
from typing import Any

import torch

from codec import generator
from codec.messages import GradientRequest, LocalRequest
from fl_app.config import RunConfig
from fl_app.data import load
from fl_app.models import build_model
from sim.compare.theoretical_size import theoretical_size
from sim.run_config import ConfigValue, read_defaults


def message_size(run_config: dict[str, ConfigValue], app: Path) -> dict[str, Any] | None:
    """Measure a baseline's compressor on a gradient of the preset's model and data.

    Parameters
    ----------
    run_config : dict
        Overrides of the app's run config.
    app : Path
        Folder of the Flower app.

    Returns
    -------
    dict or None
        ``coordinates``, ``serialized_bytes``, ``textbook_bytes`` and ``entropy_bytes``, see
        `sim.compare.theoretical_size.TheoreticalSize`; None if the method
        compresses nothing.
    """
    config = RunConfig.from_run_config({**read_defaults(app), **run_config})
    request = config.request()
    if not isinstance(request, GradientRequest | LocalRequest):
        return None
    compressor = request.compressor()
    if compressor is None:
        return None
    train = load(config.dataset, "train", config.data_dir, config.image_size)
    rng = generator(config.seed)
    chosen = rng.permutation(len(train.labels))[: config.batch_size]
    model = build_model(
        config.model,
        train.samples.shape[1:],
        train.classes,
        stem=config.stem,
        width=config.width,
        seed=config.seed,
    )
    samples = torch.from_numpy(train.samples[chosen]).float() / 255
    loss = torch.nn.functional.cross_entropy(model(samples), torch.from_numpy(train.labels[chosen]))
    gradient = [part.numpy() for part in torch.autograd.grad(loss, list(model.parameters()))]
    data, _ = compressor.compress(gradient, None, rng)
    theory = theoretical_size(compressor, data, [part.shape for part in gradient])
    return {
        "coordinates": sum(part.size for part in gradient),
        "serialized_bytes": len(data),
        "textbook_bytes": theory.textbook,
        "entropy_bytes": theory.entropy,
    }
