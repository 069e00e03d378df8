import math
from typing import Any

import pytest

from codec import CodecError, Compression, Refinement
from codec.gradients import COMPRESSORS, EDEN, QSGD, PowerSGD, RandK, TopK


def test_rates_reach_the_compressor() -> None:
    rate: dict[str, Any] = {"bits": 4, "density": 0.2, "rank": 3}
    assert Compression("qsgd", **rate).compressor() == QSGD(levels=15, bucket=0)
    assert Compression("eden", **rate).compressor() == EDEN(bits=4)
    assert Compression("top-k", **rate).compressor() == TopK(density=0.2)
    assert Compression("rand-k", **rate).compressor() == RandK(density=0.2)
    assert Compression("powersgd", **rate).compressor() == PowerSGD(rank=3)


def test_seven_bits_of_qsgd_are_int8() -> None:
    assert Compression("qsgd", bits=7).compressor() == QSGD(levels=127, bucket=0)


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
    ("options", "name", "problem"),
    [
        ({"kind": "zip"}, "", "= 'zip' must be one of none"),
        ({"kind": "eden", "bits": 5}, "bits", "= 5 must be 1, 2, 3 or 4, or below 1, for eden"),
        ({"kind": "qsgd", "bits": 17}, "bits", r"= 17.0 must be in \[0, 16\]"),
        ({"kind": "qsgd", "bits": -1}, "bits", r"= -1.0 must be in \[0, 16\]"),
        ({"kind": "top-k", "density": 0.0}, "density", r"= 0.0 must be in \(0, 1\]"),
        ({"kind": "rand-k", "density": math.nan}, "density", r"= nan must be in \(0, 1\]"),
        ({"kind": "powersgd", "rank": 0}, "rank", "= 0 must be >= 1"),
    ],
)
def test_illegal_values_are_named(
    cls: type[Compression], options: dict[str, Any], name: str, problem: str
) -> None:
    with pytest.raises(CodecError, match=f"^{name or 'kind'} {problem}"):
        cls(**options)
    kind = "compressor" if cls is Compression else "refinement"
    keys = {"kind": kind, **{name: f"compressor-{name}" for name in ("bits", "density", "rank")}}
    entries = {keys[name]: value for name, value in options.items()}
    with pytest.raises(CodecError, match=f"^{keys[name or 'kind']} {problem}"):
        cls.from_entries(entries)


def test_only_a_refinement_is_automatic() -> None:
    assert Refinement("auto")
    with pytest.raises(CodecError, match=r"^kind = 'auto' must be one of none, fp32"):
        Compression("auto")
    with pytest.raises(CodecError, match=r"^compressor = 'auto' must be one of none, fp32"):
        Compression.from_entries({"compressor": "auto"})


@pytest.mark.parametrize("key", ["compressor", "refinement"])
def test_a_compressor_may_be_given_by_name(key: str) -> None:
    cls = Compression if key == "compressor" else Refinement
    assert cls.coerce("top-k") == cls("top-k")
    assert cls("qsgd", bits=3).to_entries()[key] == "qsgd"
