"""The plain rival: every client uploads its images once, and the model is trained centrally."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from fl_app.config import RunConfig
from fl_app.data import load
from fl_app.partition import partition_indices
from sim.central import central_points
from sim.run_config import ConfigValue, read_defaults
from sim.upload import upload

Row = dict[str, Any]


def train_uploaded(
    codec: str, quality: int, run_config: dict[str, ConfigValue], app: Path, clients: int
) -> tuple[Row, list[Row]]:
    """Upload with an image codec and train as the replay server does.

    Parameters
    ----------
    codec : str
        See `sim.upload`.
    quality : int
        Of the codec.
    run_config : dict
        Overrides of the app's run config; its codec options are not used.
    app : Path
        Folder of the Flower app.
    clients : int
        Each uploads its own part, by itself.

    Returns
    -------
    run, points : dict and list of dict
        As in `sim.compare.runner.Results`.
    """
    started = time.perf_counter()
    config = RunConfig.from_run_config({**read_defaults(app), **run_config})
    train = load(config.dataset, "train", config.data_dir, config.image_size)
    parts = []
    for client in range(clients):
        indices = partition_indices(
            train.labels,
            client,
            clients,
            scheme=config.partition,
            alpha=config.dirichlet_alpha,
            max_samples=config.max_train_samples,
            seed=config.seed,
        )
        if len(indices):
            part = train.select(indices)
            parts.append(upload(part.samples, part.labels, codec, quality))
    uploaded = time.perf_counter()
    images = np.concatenate([part.images for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    size = sum(len(part.data) for part in parts)
    points = [
        {"step": steps, "accuracy": accuracy, "uplink_bytes": size, "downlink_bytes": 0}
        for steps, accuracy in central_points(config, images, labels)
    ]
    ended = time.perf_counter()
    run = {
        "config": {"codec": codec, "quality": quality},
        "clients": clients,
        "samples_sent": len(images),
        "sections": {"images": size},
        "whole_file_bytes": sum(part.whole_file_bytes for part in parts),
        "device_seconds": uploaded - started,
        "server_seconds": ended - uploaded,
        "wall_seconds": ended - started,
    }
    return run, points
