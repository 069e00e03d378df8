"""What there is to see of a run: what arrived, the originals, the trained model's scores."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from codec.messages import REPLAY
from fl_app.report.arrived import Arrived, Floats, Ints, read_arrived
from fl_app.report.originals import NoOriginals, Originals, read_originals, same
from fl_app.report.run import Run
from fl_app.report.scores import NoScores, Scores, score_images
from strategies.errors import BankError

_EXCERPT = 500  # samples that are decoded, give or take a payload
_SCORED = 200  # originals that the model scores
_SEED = 0  # of what is chosen to be shown: the same page every time


@dataclass(frozen=True)
class Excerpt:
    r"""Some of what arrived, decoded.

    Attributes
    ----------
    rows : int64 (M,)
        Which of the samples, see `Arrived`.
    samples : float32 (M, \*shape)
        As they arrived, in source units.
    originals : int64 (M,)
        Image of the training set that each is of; -1 where that is not known.
    """

    rows: Ints
    samples: Floats
    originals: Ints


class Evidence:
    """What a run's folder and data set show; each part is read when it is first asked for.

    Parameters
    ----------
    run : Run

    Attributes
    ----------
    run : Run
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    @cached_property
    def arrived(self) -> Arrived | str:
        """What arrived, or why it is not known."""
        if self.run.config is not None and self.run.config.strategy != REPLAY:
            return f"strategy {self.run.config.strategy} keeps no samples on the server"
        if not self.run.bank.is_file():
            return f"there is no {self.run.bank.name}: samples were kept in memory, or moved away"
        try:
            return read_arrived(self.run.bank)
        except BankError as error:
            return str(error)

    @cached_property
    def originals(self) -> Originals | str:
        """The data set, or why it is not here."""
        try:
            return read_originals(self.run)
        except NoOriginals as error:
            return str(error)

    @cached_property
    def found(self) -> tuple[Ints, NDArray[np.int8]]:
        """Image of each arrived sample, and which images were sent, see `Originals.found`."""
        arrived, originals = self.arrived, self.originals
        if isinstance(arrived, str):
            return np.zeros(0, np.int64), np.zeros(0, np.int8)
        if isinstance(originals, str):
            return np.full(len(arrived), -1, np.int64), np.zeros(0, np.int8)
        return originals.found(arrived)

    @cached_property
    def excerpt(self) -> Excerpt | str:
        """Some of what arrived, decoded, or why there is none."""
        arrived = self.arrived
        if isinstance(arrived, str):
            return arrived
        names, counts = np.unique(arrived.payloads, return_counts=True)
        order = np.random.default_rng(_SEED).permutation(len(names))
        enough = int(np.searchsorted(np.cumsum(counts[order]), _EXCERPT)) + 1
        rows = np.flatnonzero(np.isin(arrived.payloads, names[order[:enough]]))
        try:
            samples = arrived.decoded(rows)
        except BankError as error:
            return str(error)
        of = self.found[0][rows]
        if not isinstance(self.originals, str):
            known = np.flatnonzero(of >= 0)
            near = same(self.originals.images.samples[of[known]], samples[known])
            of[known[~near]] = -1
        return Excerpt(rows, samples, of)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, as far as they are known."""
        arrived, originals = self.arrived, self.originals
        names = () if isinstance(arrived, str) else arrived.class_names
        return names or (() if isinstance(originals, str) else originals.images.class_names)

    def class_name(self, label: int) -> str:
        """Return the name of a class, or its number."""
        return self.class_names[label] if 0 <= label < len(self.class_names) else f"class {label}"

    @cached_property
    def pool(self) -> Ints:
        """Originals chosen at random among those that the clients hold, to be scored."""
        if isinstance(self.originals, str):
            return np.zeros(0, np.int64)
        held, sent = np.random.default_rng(_SEED).permutation(self.originals.held), self.found[1]
        if len(sent):  # of some it is not known whether they were sent
            held = held[sent[held] >= 0]
        return np.sort(held[:_SCORED])

    def scores(self, indices: Ints) -> Scores | str:
        """Return what the trained model makes of some originals, or why it cannot be asked."""
        if isinstance(self.originals, str):
            return self.originals
        try:
            return score_images(self.run, self.originals.images, indices)
        except NoScores as error:
            return str(error)
