"""Options and sample specs: checked when made, the same after a trip over the wire."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec import SAMPLE_CODECS, CodecError, CodecOptions, PayloadError, SampleSpec
from codec.coding.cursor import Reader, number
from codec.samples.spec import DTYPES, MAX_VALUES_PER_SAMPLE

PROPERTY = settings(max_examples=150, deadline=None, derandomize=True)

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "block": st.just(0) | st.integers(2, 256),
    "quantizer": st.sampled_from(["nearest", "stochastic", "dithered"]),
    "step": st.floats(1e-5, 100),
    "relative_to": st.sampled_from(["spread", "range"]),
    "tilt": st.floats(0, 1000),
    "chroma": st.floats(0.01, 1000),
    "quality": st.integers(1, 100),
    "avif_speed": st.integers(0, 10),
}
USED = {"auto": tuple(VALUES)} | {name: codec.uses for name, codec in SAMPLE_CODECS.items()}
any_options = st.fixed_dictionaries(VALUES)


def used_options(*names: str) -> st.SearchStrategy[CodecOptions]:
    """Options of some codecs; those that a codec does not use have their default."""
    return st.sampled_from(names).flatmap(
        lambda name: st.builds(
            CodecOptions, st.just(name), **{option: VALUES[option] for option in USED[name]}
        )
    )


options = used_options(*USED)
shared: dict[str, Any] = {
    "shape": st.lists(st.integers(1, 30), min_size=1, max_size=4).map(tuple),
    "low": st.floats(-1e30, -0.1),
    "high": st.floats(0, 1e30),
    "codec": used_options("auto", "columns", "lossless"),  # all others look at the shape
    "dtype": st.sampled_from(DTYPES),
}


def made_spec(dtype: str, low: float, high: float, **values: Any) -> SampleSpec:
    """A spec; of whole numbers, in a range that is legal for them."""
    if dtype == "int32":
        low, high = max(low, -(2.0**24)), min(high, 2.0**24)
    return SampleSpec(dtype=dtype, low=low, high=high, **values)


specs = st.builds(made_spec, classes=st.integers(1, 1 << 24), **shared) | st.builds(
    made_spec, target_size=st.integers(0, 1 << 20), **shared
)


@PROPERTY
@given(options)
def test_options_survive_the_wire(given_options: CodecOptions) -> None:
    assert CodecOptions.from_bytes(given_options.to_bytes()) == given_options


@PROPERTY
@given(st.sampled_from(list(USED)), any_options)
def test_options_that_a_codec_uses_not_do_not_travel(name: str, values: dict[str, Any]) -> None:
    again = CodecOptions.from_bytes(CodecOptions(name, **values).to_bytes())
    assert again == CodecOptions(name, **{option: values[option] for option in USED[name]})


@pytest.mark.parametrize(
    "given_options",
    [
        {"step": 1e-5}, {"step": 100.0}, {"step": 1}, {"tilt": 0}, {"tilt": 1000},
        {"chroma": 0.01}, {"chroma": 1000.0}, {"quality": 1}, {"quality": 100}, {"avif_speed": 0},
        {"block": 2}, {"block": 256}, {"block": np.int64(8)},
        {"step": np.float64(0.1)}, {"step": np.float32(0.1)},
    ],
)  # fmt: skip
def test_bounds_are_legal_on_both_ends(given_options: dict[str, Any]) -> None:
    # float32(0.01) < 0.01 and float32(1e-5) < 1e-5: legal all the same.
    made = CodecOptions(**given_options)
    assert CodecOptions.from_bytes(made.to_bytes()) == made


@pytest.mark.parametrize(
    ("given_options", "legal"),
    [
        ({"step": 0}, "in [1e-05, 100]"), ({"step": 0.0}, "in [1e-05, 100]"),
        ({"step": -1.0}, "in [1e-05, 100]"), ({"step": 9e-06}, "in [1e-05, 100]"),
        ({"step": 101.0}, "in [1e-05, 100]"), ({"step": float("inf")}, "in [1e-05, 100]"),
        ({"step": 1e300}, "in [1e-05, 100]"),
        ({"step": float("nan")}, "in [1e-05, 100]"), ({"step": "0.5"}, "a number, not str"),
        ({"block": 1}, "0 or in [2, 256]"), ({"block": 257}, "0 or in [2, 256]"),
        ({"block": -8}, "0 or in [2, 256]"), ({"block": 8.0}, "a whole number, not float"),
        ({"tilt": -0.1}, "in [0, 1000]"), ({"tilt": 1001.0}, "in [0, 1000]"),
        ({"chroma": 0.0}, "in [0.01, 1000]"), ({"chroma": 1001.0}, "in [0.01, 1000]"),
        ({"quality": 0}, "in [1, 100]"), ({"quality": 101}, "in [1, 100]"),
        ({"avif_speed": -1}, "in [0, 10]"), ({"avif_speed": 11}, "in [0, 10]"),
        ({"quantizer": "vector"}, "one of nearest, stochastic, dithered"),
        ({"quantizer": "identity"}, "one of nearest, stochastic, dithered"),
        ({"codec": "wavelet"}, "one of auto, dct, columns, lossless, jpeg"),
    ],
)  # fmt: skip
def test_an_illegal_option_names_itself_and_what_is_legal(
    given_options: dict[str, Any], legal: str
) -> None:
    ((name, value),) = given_options.items()
    with pytest.raises(CodecError) as caught:
        CodecOptions(**given_options)
    assert f"{name} = {value!r}" in str(caught.value)
    assert f"must be {legal}" in str(caught.value)


def test_option_bytes_are_read_to_the_end() -> None:
    data = CodecOptions().to_bytes()
    with pytest.raises(PayloadError, match="1 bytes after the end"):
        CodecOptions.from_bytes(data + b"\0")
    for size in range(len(data)):
        with pytest.raises(PayloadError):
            CodecOptions.from_bytes(data[:size])


@pytest.mark.parametrize(("at", "what"), [(0, "codec"), (2, "quantizer")])
def test_unknown_names_on_the_wire(at: int, what: str) -> None:
    data = bytearray(CodecOptions().to_bytes())  # codec, block, quantizer, ...
    data[at] = 200
    with pytest.raises(PayloadError, match=f"unknown {what} 200"):
        CodecOptions.from_bytes(bytes(data))


@pytest.mark.parametrize(
    ("options", "old", "new", "message"),
    [
        (CodecOptions(block=2), b"\x02", b"\x01", "block = 1"),
        (CodecOptions(step=0.25), number(0.25), number(0.0), "step = 0.0"),
        (CodecOptions(tilt=0.25), number(0.25), number(float("nan")), "tilt = nan"),
        (CodecOptions("jpeg"), b"\x32", b"\x65", "quality = 101"),
    ],
)
def test_illegal_values_on_the_wire(
    options: CodecOptions, old: bytes, new: bytes, message: str
) -> None:
    data = options.to_bytes()
    assert data.count(old) == 1
    with pytest.raises(PayloadError, match=message):
        CodecOptions.from_bytes(data.replace(old, new))


def test_avif_of_earlier_versions_is_read_with_its_speed() -> None:
    before = CodecOptions.from_bytes(bytes([20, 35]))
    assert before == CodecOptions("avif", quality=35, avif_speed=6)
    assert before.to_bytes() == bytes([24, 35, 6])
    with pytest.raises(PayloadError, match="quality = 0"):
        CodecOptions.from_bytes(bytes([20, 0]))


@PROPERTY
@given(specs)
def test_specs_survive_the_wire(spec: SampleSpec) -> None:
    reader = Reader(spec.to_bytes())
    again = SampleSpec.read(reader)
    reader.finish()
    assert again == replace(spec, codec=CodecOptions.from_bytes(spec.codec.to_bytes()))
    assert again.to_bytes() == spec.to_bytes()


def test_numpy_numbers_are_taken() -> None:
    # shape and number of classes often come out of array code
    numbers: dict[str, Any] = {"classes": np.int64(10), "high": np.float32(1)}
    spec = SampleSpec(tuple(np.array([3, 8, 8])), **numbers)
    assert spec == SampleSpec((3, 8, 8), classes=10, high=1.0)
    assert SampleSpec.read(Reader(spec.to_bytes())) == spec


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": ()}, r"shape = \(\) must be 1 to 4 whole numbers"),
        ({"shape": (1, 1, 1, 1, 1)}, r"shape = \(1, 1, 1, 1, 1\) must be 1 to 4"),
        ({"shape": (3, 0, 8)}, r"shape = \(3, 0, 8\) must be .* >= 1"),
        ({"shape": (3, -4, 8)}, r"shape = \(3, -4, 8\) must be .* >= 1"),
        ({"shape": (3, 1.5, 8)}, r"shape = \(3, 1.5, 8\) must be a list, each a whole number"),
        ({"shape": (3, 1 << 12, 1 << 12)}, f"at most {MAX_VALUES_PER_SAMPLE}"),
        ({"shape": (MAX_VALUES_PER_SAMPLE, 1, 1)}, "a block of"),
        ({"dtype": "float64"}, "float64.*uint8, float32"),
        ({"low": 255.0}, "low must be below high"),
        ({"low": 300.0}, "low must be below high"),
        ({"high": float("nan")}, "high = nan"),
        ({"high": float("inf")}, "high = inf"),
        ({"low": -1e31}, r"low = -1e\+31 must be in \[-1e\+30, 1e\+30\]"),
        ({"target_size": 2}, "classes is 10 and target_size 2; at most one"),
        ({"dtype": "int32", "high": 2.0**25}, "integers lie in .*up to .-16777216. Give larger"),
        ({"dtype": "int32", "low": -(2.0**25)}, "integers lie in"),
        ({"classes": -1}, "classes = -1"),
        ({"classes": (1 << 24) + 1}, "classes = 16777217"),
        ({"classes": 0, "target_size": 1 << 21}, "target_size = 2097152"),
        ({"shape": (5, 4, 3, 2), "codec": CodecOptions("dct")}, "'dct' codes.*codec = 'columns'"),
        (
            {"shape": (5,), "codec": CodecOptions("dct", relative_to="range")},
            "'dct' codes.*use codec = 'columns'",
        ),
    ],
)
def test_an_illegal_spec(changes: dict[str, Any], message: str) -> None:
    legal: dict[str, Any] = {"shape": (3, 8, 8), "classes": 10}
    SampleSpec(**legal)
    with pytest.raises(CodecError, match=message):
        SampleSpec(**legal | changes)


@pytest.mark.parametrize(
    ("shape", "codec"),
    [((5,), "columns"), ((2, 5), "dct"), ((2, 5, 5), "dct"), ((2, 5, 5, 5), "columns")],
)
def test_auto_takes_the_codec_of_the_shape(shape: tuple[int, ...], codec: str) -> None:
    options = CodecOptions(quantizer="dithered", step=0.25, tilt=1.0, chroma=3.0, quality=7)
    spec = SampleSpec(shape, classes=2, codec=options)
    assert spec.codec == replace(options, codec=codec)
    assert spec.sample_codec is SAMPLE_CODECS[codec]
    assert SampleSpec(shape, classes=2, codec=spec.codec) == spec


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 5, 5)])
def test_auto_keeps_whole_numbers_as_they_are(shape: tuple[int, ...]) -> None:
    spec = SampleSpec(shape, "int32", 0, 30_000, classes=2)
    assert spec.codec.codec == "lossless"


@pytest.mark.parametrize(
    ("changes", "shape", "kind"),
    [
        ({"classes": 10}, (), "10 classes"),
        ({"target_size": 3}, (3,), "vectors of 3"),
        ({"target_size": 1}, (1,), "vectors of 1"),
        ({}, (), "single floats"),
    ],
)
def test_targets_of_a_spec(changes: dict[str, int], shape: tuple[int, ...], kind: str) -> None:
    spec = SampleSpec((3, 8, 8), **changes)  # type: ignore[arg-type]  # whole numbers
    assert (spec.target_shape, spec.target_kind) == (shape, kind)


def test_a_codec_may_be_given_by_name() -> None:
    by_name: Any = "lossless"
    assert SampleSpec((5,), classes=2, codec=by_name).codec == CodecOptions("lossless")
