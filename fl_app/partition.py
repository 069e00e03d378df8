"""Which training samples belong to which simulated client."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from codec import generator
from fl_app.images import DataError


class PartitionError(DataError, ValueError):
    """A split between clients that cannot be; names what is legal."""


def partitions(
    labels: NDArray[np.int64],
    num_partitions: int,
    *,
    scheme: str = "iid",
    alpha: float = 0.5,
    max_samples: int = 0,
    seed: int = 0,
) -> list[NDArray[np.int64]]:
    """Return the indices of every client's samples, in shuffled order.

    The partitions are disjoint and cover the set (or its random part of `max_samples`). They are
    those of flwr-datasets' ``IidPartitioner`` and ``DirichletPartitioner`` (Yurochkin et al. 2019,
    arXiv:1905.12022), index by index; that package itself brings 200 MB, and no device has use for
    them. A strongly skewed Dirichlet split among many clients leaves some of them with nothing: an
    empty array.

    Parameters
    ----------
    labels : ndarray of int64, shape (N,)
    num_partitions : int
        Number of clients, at most the number of samples.
    scheme : str
        "iid" or "dirichlet".
    alpha : float
        Dirichlet concentration, > 0: the smaller, the fewer classes a client has.
    max_samples : int
        Size of the random part that is partitioned; 0 means all.
    seed : int
        The same seed gives the same partitions in every process.

    Returns
    -------
    list of ndarray of int64
        By partition.

    Raises
    ------
    PartitionError
        If there are more partitions than samples, or `alpha` is not positive and finite.
    """
    order = generator(seed).permutation(len(labels))[: max_samples or None]
    if not 0 < num_partitions <= len(order):
        raise _illegal(0, num_partitions, len(order))
    if num_partitions == 1:
        return [order]
    if scheme == "dirichlet" and not 0 < alpha * num_partitions < float("inf"):
        raise PartitionError(f"dirichlet-alpha = {alpha:g} must be > 0, and finite")
    if scheme == "iid":
        return np.array_split(order, num_partitions)
    parts = _dirichlet(labels[order], num_partitions, alpha, np.random.default_rng(seed))
    return [order[part] for part in parts]


def partition(parts: Sequence[NDArray[np.int64]], partition_id: int) -> NDArray[np.int64]:
    """Return one of the `partitions`.

    Raises
    ------
    PartitionError
        If there is no such partition.
    """
    if not 0 <= partition_id < len(parts):
        raise _illegal(partition_id, len(parts), sum(map(len, parts)))
    return parts[partition_id]


def _illegal(partition_id: int, num_partitions: int, samples: int) -> PartitionError:
    remedy = "; start fewer clients, or give them more samples" * (num_partitions > samples)
    return PartitionError(
        f"partition {partition_id} of {num_partitions}: legal are 0 <= partition-id < "
        f"num-partitions <= {samples} samples{remedy}"
    )


def _dirichlet(
    labels: NDArray[np.int64], num_partitions: int, alpha: float, random: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Return positions in `labels` by partition: each class is split in shares of its own."""
    parts: list[list[int]] = [[] for _ in range(num_partitions)]
    for label in np.unique(labels):
        members = np.nonzero(labels == label)[0]
        shares = random.dirichlet(np.full(num_partitions, alpha))
        cuts = (np.cumsum(shares) * len(members)).astype(int)[:-1]
        for part, chosen in zip(parts, np.split(members, cuts), strict=True):
            part.extend(chosen.tolist())
    for part in parts:
        random.shuffle(part)
    return [np.array(part, np.int64) for part in parts]
