import math
from typing import Any

import pytest

from codec import CodecError, Compression, Refinement
from codec.gradients import COMPRESSORS, EDEN, QSGD, PowerSGD, RandK, TopK


def test_rates_reach_the_compressor() -> None:
    rate: dict[str, Any] = {"bits": 4, "density": 0.2, "rank": 3}
    assert Compression("qsgd", **rate).compressor() == QSGD(levels=15)
    assert Compression("eden", **rate).compressor() == EDEN(bits=4)
    assert Compression("top-k", **rate).compressor() == TopK(density=0.2)
    assert Compression("rand-k", **rate).compressor() == RandK(density=0.2)
    assert Compression("powersgd", **rate).compressor() == PowerSGD(rank=3)


def test_seven_bits_of_qsgd_are_int8() -> None:
    assert Compression("qsgd", bits=7).compressor() == QSGD(levels=127)


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_every_compressor_has_a_default_rate(kind: str) -> None:
    compressor = Compression(kind).compressor()
    assert compressor is not None and compressor.name == kind
    assert Compression(kind)


def test_none_compresses_nothing() -> None:
    assert not Compression()
    assert Compression("none").compressor() is None


@pytest.mark.parametrize("cls", [Compression, Refinement])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "zip"}, "= 'zip' is not one of none"),
        ({"kind": "eden", "bits": 5}, r"compressor-bits = 5 outside \[1, 4\] of eden"),
        ({"kind": "qsgd", "bits": 17}, r"outside \[1, 16\] of qsgd"),
        ({"kind": "qsgd", "bits": 0}, "compressor-bits = 0"),
        ({"kind": "top-k", "density": 0.0}, r"compressor-density = 0.0 outside \(0, 1\]"),
        ({"kind": "rand-k", "density": math.nan}, "compressor-density = nan"),
        ({"kind": "powersgd", "rank": 0}, "compressor-rank = 0"),
    ],
)
def test_illegal_values_are_named(
    cls: type[Compression], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CodecError, match=message):
        cls(**options)


def test_only_a_refinement_is_automatic() -> None:
    assert Refinement("auto")
    with pytest.raises(CodecError, match="compressor = 'auto'"):
        Compression("auto")
