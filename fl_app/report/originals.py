"""The originals of what arrived, where the data set is at hand: in simulations, mostly."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codec.identity import FINGERPRINT_BYTES, fingerprints
from fl_app.data import DataError, Images, extent, load
from fl_app.partition import partitions
from fl_app.report.arrived import Arrived, Floats, Ints
from fl_app.report.run import Run

_MOST_BYTES = 1 << 30  # of a data set that is read for a report
_FAR = 0.6  # mean square error, in units of the variance, beyond which two are not the same picture


class NoOriginals(Exception):
    """Why there are no originals to show."""


@dataclass(frozen=True)
class Originals:
    """The training images, and which of them arrived.

    Attributes
    ----------
    images : Images
        The whole training split.
    held : int64 (H,)
        Which of them the clients have.
    clients : int64 (N,)
        Client of each image; -1 where it is not known, or none has it.
    """

    images: Images
    held: Ints
    clients: Ints

    def found(self, arrived: Arrived) -> tuple[Ints, NDArray[np.int8]]:
        """Find arrived samples by their tags, labels and clients.

        Returns
        -------
        int64 (M,)
            Image of each arrived sample; -1 where none, or more than one, agrees.
        int8 (N,)
            1 for images that were sent, 0 for those that were not, -1 where more than one agrees
            with a sample that arrived.
        """
        of, sent = np.full(len(arrived), -1, np.int64), np.zeros(len(self.images), np.int8)
        if not arrived.tag_bytes:
            return of, sent
        mask = np.uint64((1 << 8 * min(arrived.tag_bytes, FINGERPRINT_BYTES)) - 1)
        samples, labels = self.images.samples[self.held], self.images.labels[self.held]
        prints = np.maximum(fingerprints(samples, labels, arrived.id), 1) & mask
        known: dict[tuple[int, int, int], list[int]] = {}
        clients = self.clients[self.held].tolist()
        for index, *key in zip(
            self.held.tolist(), prints.tolist(), labels.tolist(), clients, strict=True
        ):
            known.setdefault((key[0], key[1], key[2]), []).append(index)
        told = not len(clients) or min(clients) >= 0
        senders = arrived.clients.tolist() if told else [-1] * len(arrived)
        for row, wanted in enumerate(
            zip(arrived.tags.tolist(), arrived.labels.tolist(), senders, strict=True)
        ):
            here = known.get(wanted, [])
            sent[here] = 1 if len(here) == 1 else -1
            if len(here) == 1:
                of[row] = here[0]
        return of, sent


def same(originals: NDArray[np.generic], decoded: Floats) -> NDArray[np.bool_]:
    r"""Return which of (M, \*shape) samples are near their originals: tags agree by chance, too."""
    errors = mean_square(originals, decoded)
    variance = float(originals.astype(np.float64).var()) or 1.0
    near: NDArray[np.bool_] = errors < _FAR * variance
    return near


def mean_square(originals: NDArray[np.generic], decoded: Floats) -> NDArray[np.float64]:
    r"""Return the mean square error of each of (M, \*shape) samples, in source units squared."""
    difference = originals.astype(np.float64) - decoded
    errors: NDArray[np.float64] = np.square(difference).mean(axis=tuple(range(1, decoded.ndim)))
    return errors


def read_originals(run: Run) -> Originals:
    """Load what a run's clients have learned from.

    Raises
    ------
    NoOriginals
        If it is not here, or more than a report should read.
    """
    config = run.config
    if config is None:
        raise NoOriginals("the run's config is missing, or of another version")
    place = (config.data_dir, config.image_size)
    try:
        count, _ = extent(config.dataset, "train", *place)  # without a look into the files
        if count * 3 * config.image_size**2 > _MOST_BYTES and config.dataset == "imagefolder":
            raise NoOriginals(f"the training set of {count:,} images is too large to read here")
        images = load(config.dataset, "train", *place)
    except DataError as error:
        raise NoOriginals(str(error)) from error
    clients = np.full(len(images), -1, np.int64)
    if run.clients is None or config.client_key != "partition":
        return Originals(images, np.arange(len(images)), clients)
    parts = partitions(
        images.labels,
        run.clients,
        scheme=config.partition,
        alpha=config.dirichlet_alpha,
        max_samples=config.max_train_samples,
        seed=config.seed,
    )
    for number, part in enumerate(parts):
        clients[part] = number
    return Originals(images, np.flatnonzero(clients >= 0), clients)
