"""Counter-based random numbers: one key, one stream, on every machine."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec import CodecError, generator
from codec.random import Stream, client_generator, server_generator, torch_seed, uniform

keys = st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 3), min_size=1, max_size=4)


def test_a_key_gives_one_stream() -> None:
    assert generator(1, 2, 3).integers(2**60) == generator(1, 2, 3).integers(2**60)
    assert np.array_equal(uniform((5, 3), 1, 2, 3), uniform((5, 3), 1, 2, 3))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((5,), (5, 0)),  # a bare SeedSequence pads with zeros
        ((2**32,), (0, 1)),  # and cuts numbers into words of 32 bits
        ((2**32, 0), (0, 1)),
        ((1, 2, 3), (3, 2, 1)),
        ((0,), (1,)),
    ],
)
def test_different_keys_give_different_streams(
    one: tuple[int, ...], other: tuple[int, ...]
) -> None:
    assert generator(*one).integers(2**60) != generator(*other).integers(2**60)
    assert not np.array_equal(uniform((8,), *one), uniform((8,), *other))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(keys, keys)
def test_streams_agree_only_where_keys_do(one: list[int], other: list[int]) -> None:
    same = np.array_equal(uniform((8,), *one), uniform((8,), *other))
    assert same == (one == other)


def test_dither_shares_no_words_with_the_generator_of_its_key() -> None:
    drawn = generator(1, 2, 3).bit_generator.random_raw(50) >> np.uint64(40)
    dither = (uniform((100,), 1, 2, 3) * 2**24).astype(np.uint64)
    assert not np.intersect1d(drawn, dither).size


def test_uniform_is_what_payloads_in_the_wild_were_dithered_with() -> None:
    # A change here makes old dithered payloads decode to noise: it needs a new version.
    words = (uniform((4,), 1, 2, 3) * 2**24).astype(int)
    assert words.tolist() == [261232, 5376053, 3227895, 4530945]


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (7,), (4, 5)])
def test_uniform_has_the_shape_asked_for(shape: tuple[int, ...]) -> None:
    drawn = uniform(shape, 1)
    assert drawn.shape == shape
    assert drawn.dtype == np.float32


def test_uniform_is_uniform() -> None:
    count = 200_000
    drawn = uniform((count,), 4, 2).astype(np.float64)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert abs(drawn.mean() - 1 / 2) < 5 * np.sqrt(1 / 12 / count)
    assert abs(drawn.var() - 1 / 12) < 5 * np.sqrt((1 / 80 - 1 / 144) / count)
    # Two numbers come from one word: they must not know of each other.
    assert abs(np.corrcoef(drawn[::2], drawn[1::2])[0, 1]) < 5 / np.sqrt(count / 2)
    counts = np.histogram(drawn, bins=64, range=(0, 1))[0]
    chi_square = ((counts - count / 64) ** 2).sum() / (count / 64)
    assert abs(chi_square - 63) < 5 * np.sqrt(2 * 63)


@pytest.mark.parametrize("key", [(-1,), (0, 2**64), (0, 0, -5)])
def test_a_key_out_of_range_is_refused(key: tuple[int, ...]) -> None:
    with pytest.raises(CodecError, match=str(max(key, key=abs))):
        generator(*key)


def drawn(source: np.random.Generator) -> int:
    return int(source.integers(2**62))


def test_streams_of_a_client_and_of_the_server_are_all_different() -> None:
    clients = [s for s in Stream if s < Stream.SERVER_NODES]
    server = [s for s in Stream if s >= Stream.SERVER_NODES]
    assert clients and server
    keys = [(seed, step, who) for seed in (0, 1) for step in (0, 1) for who in (0, 1)]
    sources = [client_generator(*key, s) for key in keys for s in (None, *clients)]
    sources += [
        server_generator(seed, step, s) for seed in (0, 1) for step in (0, 1) for s in server
    ]
    assert len({drawn(source) for source in sources}) == len(sources)


def test_streams_stay_what_they_were() -> None:
    # Runs repeat under a new version only while these keys stay.
    assert drawn(client_generator(3, 2, 1)) == drawn(generator(3, 2, 1))
    assert {s.name: int(s) for s in Stream} == {
        "COMPRESSOR": 1, "DROPOUT": 2, "ORDER": 3, "AUGMENTATION": 4, "STATISTICS": 5,
        "CHECKS": 6, "CODEC": 7,
        "SERVER_NODES": 100, "SERVER_MINIBATCHES": 101, "SERVER_AUGMENTATION": 102,
        "SERVER_EVALUATION": 103, "SERVER_SCOUT": 104, "SERVER_DOWNLINK": 105,
        "SERVER_CALIBRATION": 106,
    }  # fmt: skip
    for stream in Stream:
        if stream < Stream.SERVER_NODES:
            assert drawn(client_generator(3, 2, 1, stream)) == drawn(generator(3, 2, 1, stream))
        else:
            place = stream - Stream.SERVER_NODES
            expected = generator(3, 2, 2**32 - 1, place)
            assert drawn(server_generator(3, 2, stream)) == drawn(expected)


def test_seeds_of_torch_fit_its_generators() -> None:
    seeds = {torch_seed(generator(0, key)) for key in range(200)}
    assert len(seeds) == 200
    assert min(seeds) >= 0 and 2**62 < max(seeds) < 2**63
