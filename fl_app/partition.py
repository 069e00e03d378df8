"""Which training samples belong to which simulated client."""

import numpy as np
from numpy.typing import NDArray

from codec import generator
from fl_app.images import DataError


class PartitionError(DataError, ValueError):
    """A split between clients that cannot be; names what is legal."""


def partition_indices(
    labels: NDArray[np.int64],
    partition_id: int,
    num_partitions: int,
    *,
    scheme: str = "iid",
    alpha: float = 0.5,
    max_samples: int = 0,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Return the indices of one client's samples, in shuffled order.

    The partitions of the same arguments are disjoint and cover the set (or its random part of
    `max_samples`). Splitting is done by flwr-datasets' ``IidPartitioner`` and
    ``DirichletPartitioner`` (Yurochkin et al. 2019, arXiv:1905.12022); it is imported only when
    there is something to split, since a single device owns all it holds. A strongly skewed
    Dirichlet split among many clients leaves some of them with nothing: an empty array.

    Parameters
    ----------
    labels : ndarray of int64, shape (N,)
    partition_id : int
        In [0, num_partitions).
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

    Raises
    ------
    PartitionError
        If `partition_id` is out of range, there are more partitions than samples, or `alpha` is
        not positive and finite.
    """
    order = generator(seed).permutation(len(labels))[: max_samples or None]
    if not 0 <= partition_id < num_partitions <= len(order):
        remedy = "; start fewer clients, or give them more samples"
        raise PartitionError(
            f"partition {partition_id} of {num_partitions}: legal are 0 <= partition-id < "
            f"num-partitions <= {len(order)} samples{remedy * (num_partitions > len(order))}"
        )
    if num_partitions == 1:
        return order
    if scheme == "dirichlet" and not 0 < alpha * num_partitions < float("inf"):
        raise PartitionError(f"dirichlet-alpha = {alpha:g} must be > 0, and finite")
    from datasets import Dataset
    from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner, Partitioner

    partitioner: Partitioner = IidPartitioner(num_partitions)
    if scheme == "dirichlet":
        partitioner = DirichletPartitioner(
            num_partitions, "label", alpha, min_partition_size=0, seed=seed
        )
    partitioner.dataset = Dataset.from_dict({"index": order, "label": labels[order]})
    # of no samples, NumPy would make floats
    return np.asarray(partitioner.load_partition(partition_id)["index"], np.int64)
