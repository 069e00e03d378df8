"""Options and sample specs: checked when made, the same after a trip over the wire."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec import CodecError, CodecOptions, PayloadError, SampleSpec
from codec.coding.cursor import Reader
from codec.samples.spec import DTYPES, MAX_VALUES_PER_SAMPLE

PROPERTY = settings(max_examples=150, deadline=None, derandomize=True)

options = st.builds(
    CodecOptions,
    transform=st.sampled_from(["auto", "identity"]),
    block=st.just(0) | st.integers(2, 256),
    quantizer=st.sampled_from(["nearest", "stochastic", "dithered", "identity"]),
    step=st.floats(1e-5, 100),
    dead_zone=st.floats(0, 0.49),
)
shared: dict[str, Any] = {
    "shape": st.lists(st.integers(1, 30), min_size=1, max_size=4).map(tuple),
    "low": st.floats(-1e30, -0.1),
    "high": st.floats(0, 1e30),
    "codec": options,
    "dtype": st.sampled_from(DTYPES),
}
specs = st.builds(SampleSpec, classes=st.integers(1, 1 << 24), **shared) | st.builds(
    SampleSpec, target_size=st.integers(1, 1 << 20), **shared
)


@PROPERTY
@given(options)
def test_options_survive_the_wire(given_options: CodecOptions) -> None:
    assert CodecOptions.from_bytes(given_options.to_bytes()) == given_options


@pytest.mark.parametrize(
    "given_options",
    [
        {"step": 1e-5}, {"step": 100.0}, {"step": 1}, {"dead_zone": 0.49}, {"dead_zone": 0},
        {"block": 2}, {"block": 256}, {"step": np.float64(0.1)}, {"step": np.float32(0.1)},
    ],
)  # fmt: skip
def test_bounds_are_legal_on_both_ends(given_options: dict[str, Any]) -> None:
    # float32(0.49) > 0.49 and float32(1e-5) < 1e-5: legal all the same.
    made = CodecOptions(**given_options)
    assert CodecOptions.from_bytes(made.to_bytes()) == made


@pytest.mark.parametrize(
    ("given_options", "legal"),
    [
        ({"step": 0}, "100.0"), ({"step": 0.0}, "100.0"), ({"step": -1.0}, "100.0"),
        ({"step": 9e-6}, "1e-05"), ({"step": 101.0}, "100.0"), ({"step": 1e300}, "100.0"),
        ({"step": float("nan")}, "100.0"), ({"step": float("inf")}, "100.0"),
        ({"block": 1}, "256"), ({"block": 257}, "256"), ({"block": -8}, "256"),
        ({"dead_zone": 0.5}, "0.49"), ({"dead_zone": -0.1}, "0.49"),
        ({"quantizer": "vector"}, "nearest, stochastic, dithered, identity"),
        ({"transform": "wavelet"}, "auto, identity, dct1, dct2"),
    ],
)  # fmt: skip
def test_an_illegal_option_names_itself_and_what_is_legal(
    given_options: dict[str, Any], legal: str
) -> None:
    ((name, value),) = given_options.items()
    with pytest.raises(CodecError) as caught:
        CodecOptions(**given_options)
    assert name in str(caught.value)
    assert str(value) in str(caught.value)
    assert legal in str(caught.value)


def test_option_bytes_are_read_to_the_end() -> None:
    data = CodecOptions().to_bytes()
    with pytest.raises(PayloadError, match="1 bytes after the end"):
        CodecOptions.from_bytes(data + b"\0")
    for size in range(len(data)):
        with pytest.raises(PayloadError):
            CodecOptions.from_bytes(data[:size])


@pytest.mark.parametrize("at", [0, 1])
def test_unknown_names_on_the_wire(at: int) -> None:
    data = bytearray(CodecOptions().to_bytes())
    data[at] = 200
    with pytest.raises(PayloadError, match="200"):
        CodecOptions.from_bytes(bytes(data))


@PROPERTY
@given(specs)
def test_specs_survive_the_wire(spec: SampleSpec) -> None:
    reader = Reader(spec.to_bytes())
    assert SampleSpec.read(reader) == spec
    reader.finish()


def test_numpy_numbers_are_taken() -> None:
    # shape and number of classes often come out of array code
    numbers: dict[str, Any] = {"classes": np.int64(10), "high": np.float32(1)}
    spec = SampleSpec(tuple(np.array([3, 8, 8])), **numbers)
    assert spec == SampleSpec((3, 8, 8), classes=10, high=1.0)
    assert SampleSpec.read(Reader(spec.to_bytes())) == spec


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": ()}, "axes is 0"),
        ({"shape": (1, 1, 1, 1, 1)}, "axes is 5"),
        ({"shape": (3, 0, 8)}, "side of shape is 0"),
        ({"shape": (3, -4, 8)}, "side of shape is -4"),
        ({"shape": (3, 1 << 12, 1 << 12)}, str(3 << 24)),
        ({"shape": (MAX_VALUES_PER_SAMPLE, 1, 1)}, "of a block"),
        ({"dtype": "float64"}, "float64.*uint8, float32"),
        ({"low": 255.0}, "low must be below high"),
        ({"low": 300.0}, "low must be below high"),
        ({"high": float("nan")}, "high is nan"),
        ({"high": float("inf")}, "high is inf"),
        ({"low": -1e31}, "low is -9.99"),
        ({"classes": 0}, "exactly one"),
        ({"target_size": 2}, "exactly one"),
        ({"classes": -1}, "classes is -1"),
        ({"classes": (1 << 24) + 1}, "classes is 16777217"),
        ({"classes": 0, "target_size": 1 << 21}, "target_size is 2097152"),
        ({"codec": CodecOptions("dct1")}, "dct1.*2 axes"),
    ],
)
def test_an_illegal_spec(changes: dict[str, Any], message: str) -> None:
    legal: dict[str, Any] = {"shape": (3, 8, 8), "classes": 10}
    SampleSpec(**legal)
    with pytest.raises(CodecError, match=message):
        SampleSpec(**legal | changes)


@pytest.mark.parametrize(
    ("shape", "kind"), [((5,), "identity"), ((2, 5), "dct1"), ((2, 5, 5), "dct2")]
)
def test_auto_takes_the_transform_of_the_shape(shape: tuple[int, ...], kind: str) -> None:
    assert SampleSpec(shape, classes=2).transform.kind == kind
