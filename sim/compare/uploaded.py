"""The plain rival: every client uploads its images once, and the model is trained centrally."""

import hashlib
import time
from collections.abc import Mapping, Sequence
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
    codec: str,
    quality: int,
    run_config: dict[str, ConfigValue],
    app: Path,
    clients: int,
    trained: Mapping[str, tuple[float, Sequence[Row]]] | None = None,
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
    trained : mapping of str to (float, points), optional
        Seconds and points of what was trained before with this config, by the images' digest:
        lossless codecs deliver the very same images, hence the same training.

    Returns
    -------
    run, points : dict and list of dict
        As in `sim.compare.results.Results`; the run has the images' digest, ``images``.
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
    digest = hashlib.sha256(images.tobytes()).hexdigest()[:16]
    size = sum(len(part.data) for part in parts)
    if trained and digest in trained:
        seconds, known = trained[digest]
        accuracies = [(row["step"], row["accuracy"]) for row in known]
    else:
        accuracies = list(central_points(config, images, labels))
        seconds = time.perf_counter() - uploaded
    points = [
        {"step": steps, "accuracy": accuracy, "uplink_bytes": size, "downlink_bytes": 0}
        for steps, accuracy in accuracies
    ]
    run = {
        "config": {"codec": codec, "quality": quality},
        "clients": clients,
        "samples_sent": len(images),
        "sections": {"images": size},
        "images": digest,
        "whole_file_bytes": sum(part.whole_file_bytes for part in parts),
        "device_seconds": uploaded - started,
        "server_seconds": seconds,
        "wall_seconds": time.perf_counter() - started,
    }
    return run, points
