"""Scores of original samples by the model that a run has trained."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_model

from clients.importance import SCORES, model_outputs, needs_features, score
from codec import CodecError, SampleSpec
from fl_app.data import Images
from fl_app.models import build_model
from fl_app.report.arrived import Ints
from fl_app.report.run import Run

_UNSCORED = "loss"  # is shown where a run scores nothing


class NoScores(Exception):
    """Why there are no scores."""


@dataclass(frozen=True)
class Scores:
    """Scores of images.

    Attributes
    ----------
    name : str
        Which score, of `clients.importance.SCORES`.
    is_own : bool
        Whether the run chose its samples by it.
    values : float64 (M,)
        The higher, the more important.
    """

    name: str
    is_own: bool
    values: NDArray[np.float64]


def score_images(run: Run, images: Images, indices: Ints) -> Scores:
    """Score some images by the run's own importance, or by their loss if it has none.

    Raises
    ------
    NoScores
        If the model is not there, or does not fit.
    """
    config = run.config
    if config is None or not run.model.is_file():
        raise NoScores("the trained model, or its config, is not in the run folder")
    name = config.importance if config.importance in SCORES else _UNSCORED
    kind, chosen = images.kind, images.samples[indices]
    scale = "unit" if config.scale == "auto" else config.scale
    spec = SampleSpec(kind.shape, kind.dtype, *kind.value_range, kind.classes)
    try:
        model = build_model(
            config.model, kind.shape, kind.classes, stem=config.stem, width=config.width
        )
        load_model(model, str(run.model))
        features = needs_features(name)
        outputs = model_outputs(model, chosen, spec, scale=scale, features=features)
        values = score(name, outputs, images.labels[indices])
    except (CodecError, RuntimeError, OSError) as error:
        raise NoScores(f"the trained model cannot score: {error}") from error
    return Scores(name, name == config.importance, values)
