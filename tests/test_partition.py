"""Tests of fl_app.partition."""

import numpy as np
import pytest

from codec import generator
from fl_app.data import DataError
from fl_app.partition import PartitionError, partition, partitions

LABELS = np.repeat(np.arange(10), 40)


@pytest.mark.parametrize("scheme", ["iid", "dirichlet"])
def test_partitions_are_disjoint_and_cover_the_set(scheme: str) -> None:
    parts = partitions(LABELS, 8, scheme=scheme)
    assert sorted(np.concatenate(parts).tolist()) == list(range(400))


def test_iid_parts_are_equal_in_size_and_mixed() -> None:
    part = partition(partitions(LABELS, 8), 3)
    assert len(part) == 50
    assert len(np.unique(LABELS[part])) == 10


def test_small_alpha_gives_few_classes() -> None:
    parts = partitions(LABELS, 4, scheme="dirichlet", alpha=0.01)
    assert all(np.bincount(LABELS[p]).max(initial=0) >= len(p) / 4 for p in parts)
    assert min(len(np.unique(LABELS[part])) for part in parts) < 6


def test_more_clients_than_a_skewed_split_can_serve_leaves_some_empty() -> None:
    sizes = [len(part) for part in partitions(LABELS, 100, scheme="dirichlet", alpha=0.01)]
    assert sum(sizes) == 400
    assert min(sizes) == 0


@pytest.mark.parametrize("scheme", ["iid", "dirichlet"])
def test_same_seed_gives_the_same_parts(scheme: str) -> None:
    first, again, other = (
        partitions(LABELS, 4, scheme=scheme, seed=seed)[1].tolist() for seed in (5, 5, 6)
    )
    assert first == again != other


@pytest.mark.parametrize("num_partitions", [1, 4])
def test_max_samples_takes_a_random_part(num_partitions: int) -> None:
    parts = partitions(LABELS, num_partitions, max_samples=100)
    chosen = np.concatenate(parts)
    assert len(set(chosen.tolist())) == 100
    assert len(np.unique(LABELS[chosen])) == 10


@pytest.mark.parametrize(("partition_id", "num_partitions"), [(4, 4), (-1, 4), (0, 401), (0, 0)])
def test_illegal_partition_is_refused(partition_id: int, num_partitions: int) -> None:
    with pytest.raises(ValueError, match="0 <= partition-id < num-partitions <= 400"):
        partition(partitions(LABELS, num_partitions), partition_id)


def test_an_empty_share_indexes_no_sample() -> None:
    parts = partitions(LABELS, 100, scheme="dirichlet", alpha=0.01)
    empty = next(part for part in parts if not len(part))
    assert empty.dtype == np.int64
    assert LABELS[empty].shape == (0,)


def test_more_clients_than_samples_says_what_to_do() -> None:
    with pytest.raises(PartitionError, match=r"partition 0 of 401: .* 400 samples; start fewer"):
        partitions(LABELS, 401)
    assert issubclass(PartitionError, DataError)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf"), 1e308])
def test_alpha_that_gives_no_split_is_refused(alpha: float) -> None:
    with pytest.raises(PartitionError, match=r"dirichlet-alpha = .* must be > 0, and finite"):
        partitions(LABELS, 5, scheme="dirichlet", alpha=alpha)


@pytest.mark.slow  # flwr-datasets takes its time to import
@pytest.mark.parametrize("scheme", ["iid", "dirichlet"])
@pytest.mark.parametrize("count", [400, 397, 23])
def test_parts_are_those_of_flwr_datasets(scheme: str, count: int) -> None:
    from datasets import Dataset
    from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner, Partitioner

    for parts, alpha, seed in ((2, 0.5, 0), (7, 0.05, 1), (23, 100.0, 2)):
        order = generator(seed).permutation(400)[:count]
        partitioner: Partitioner = IidPartitioner(parts)
        if scheme == "dirichlet":
            partitioner = DirichletPartitioner(
                parts, "label", alpha, min_partition_size=0, seed=seed
            )
        partitioner.dataset = Dataset.from_dict({"index": order, "label": LABELS[order]})
        ours = partitions(LABELS, parts, scheme=scheme, alpha=alpha, max_samples=count, seed=seed)
        theirs = [list(partitioner.load_partition(part)["index"]) for part in range(parts)]
        assert [part.tolist() for part in ours] == theirs
