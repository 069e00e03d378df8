"""Options that are declared once: their checks, entries, run-config keys and signatures."""

import inspect
import math
import struct
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire import through_flower

from codec import CodecError, CodecOptions, OptionError, PayloadError
from codec.options import (
    COUNT,
    COUNT_OR_NONE,
    POSITIVE,
    PROPER_SHARE,
    SHARE,
    OneOf,
    Options,
    PackedOptions,
    Range,
    check,
    choice,
    did_you_mean,
    flat_fields,
    key_of,
    kind_name,
    option,
    own_fields,
    pick,
    required,
    split_options,
    takes_options,
    values_of,
)

PROPERTY = settings(max_examples=150, deadline=None, derandomize=True)


@dataclass(frozen=True)
class Colour(Options):
    """Colour of a thing.

    More about colours.
    """

    kind: str = choice("what colour", "none", "red", "green", key="colour")
    shade: int = option(2, "how dark", Range(1, 16), key="colour-shade")


@dataclass(frozen=True)
class Packed(PackedOptions):
    """What travels as bytes."""

    packing: str = choice("how it is packed", "loose", "tight")
    coarse_step: float = option(0.5, "a step", Range(0.01, 100), float32=True)

    def to_bytes(self) -> bytes:
        return bytes([self.packing == "tight"]) + struct.pack("<f", self.coarse_step)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Packed":
        if len(data) != 5:
            raise PayloadError(f"{len(data)} bytes are no options")
        return cls("tight" if data[0] else "loose", struct.unpack("<f", data[1:])[0])


@dataclass(frozen=True, kw_only=True)
class Thing(Options):
    """A field of every kind."""

    serial_number: int = required(int, "number of the thing", COUNT_OR_NONE)
    keep_rate: float = option(1.0, "share that is kept", PROPER_SHARE)
    ready: bool = option(False, "whether it is ready")
    label: str = option("", "free text")
    data: bytes | None = option(None, "what it holds")
    last_round: int | None = option(None, "round in which it was seen", Range(-1))
    seconds: float = option(0.0, "time it took", COUNT_OR_NONE, telemetry=True)
    colour: Colour = field(default_factory=Colour)
    packed: Packed = field(default_factory=Packed)


@dataclass(frozen=True, kw_only=True)
class Listed(Options):
    """Fields that are lists."""

    names: tuple[str, ...] = option((), "names")
    sides: tuple[int, ...] = option((), "sides")
    parts: tuple[bytes, ...] = option((), "parts")
    note: tuple[str, ...] = option((), "notes", telemetry=True)
    in_use: int = option(0, "how many are used", COUNT_OR_NONE, telemetry=True, metric=True)


@dataclass(frozen=True, kw_only=True)
class Box(Options):
    """What the run config can hold."""

    keep_rate: float = option(1.0, "share that is kept", PROPER_SHARE)
    ready: bool = option(False, "whether it is ready")
    label: str = option("", "free text")
    count: int = option(3, "how many", COUNT)
    colour: Colour = field(default_factory=Colour)
    packed: Packed = field(default_factory=Packed)


@dataclass(frozen=True, kw_only=True)
class Lid(Options):
    """A lid."""

    count: int = option(3, "how many", COUNT)
    weight: float = option(1.5, "how heavy", POSITIVE)


WHOLE = st.integers(0, 2**63 - 1)
SHARES = st.floats(0, 1, exclude_min=True)
COLOURS = st.builds(Colour, st.sampled_from(["none", "red", "green"]), st.integers(1, 16))
PACKED = st.builds(Packed, st.sampled_from(["loose", "tight"]), st.floats(0.01, 100))
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
THINGS = st.builds(
    Thing,
    serial_number=WHOLE,
    keep_rate=SHARES,
    ready=st.booleans(),
    label=TEXT,
    data=st.none() | st.binary(max_size=20),
    last_round=st.none() | st.integers(-1, 2**63 - 1),
    seconds=st.floats(0, 1e300),
    colour=COLOURS,
    packed=PACKED,
)
BOXES = st.builds(
    Box, keep_rate=SHARES, ready=st.booleans(), label=TEXT, count=st.integers(1, 2**63 - 1),
    colour=COLOURS, packed=PACKED,
)  # fmt: skip


def thing(**values: Any) -> Thing:
    return Thing(**{"serial_number": 1, **values})


def problem(cls: type[Options], **values: Any) -> str:
    """Message of the error that making options raises."""
    with pytest.raises(OptionError) as caught:
        cls(**values)
    assert str(caught.value) == f"{caught.value.name} {caught.value.problem}"
    return str(caught.value)


# Checks


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("serial_number", 7, 7),
        ("serial_number", np.int64(7), 7),
        ("serial_number", np.uint8(7), 7),
        ("serial_number", 2**63 - 1, 2**63 - 1),
        ("keep_rate", 0.5, 0.5),
        ("keep_rate", 1, 1.0),
        ("keep_rate", np.float32(0.5), 0.5),
        ("keep_rate", np.float64(0.1), 0.1),
        ("keep_rate", np.int32(1), 1.0),
        ("keep_rate", Fraction(1, 4), 0.25),
        ("ready", True, True),
        ("ready", np.bool_(True), True),
        ("label", "text", "text"),
        ("label", np.str_("text"), "text"),
        ("data", b"bytes", b"bytes"),
        ("data", None, None),
        ("last_round", None, None),
        ("last_round", np.int16(-1), -1),
    ],
)
def test_a_value_is_kept_in_the_type_of_its_field(name: str, value: Any, kept: Any) -> None:
    found = getattr(thing(**{name: value}), name)
    assert found == kept
    assert type(found) is type(kept)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("serial_number", True, "serial_number = True must be a whole number, not bool"),
        ("serial_number", np.bool_(1), "must be a whole number, not bool"),
        ("serial_number", 1.0, "serial_number = 1.0 must be a whole number, not float"),
        ("serial_number", np.float64(1), "must be a whole number, not float64"),
        ("serial_number", "1", "serial_number = '1' must be a whole number, not str"),
        ("serial_number", None, "serial_number = None must be a whole number, not NoneType"),
        ("keep_rate", True, "keep_rate = True must be a number, not bool"),
        ("keep_rate", "0.5", "keep_rate = '0.5' must be a number, not str"),
        ("keep_rate", 1j, "keep_rate = 1j must be a number, not complex"),
        ("keep_rate", np.array([0.5]), "must be a number, not ndarray"),
        ("ready", 1, "ready = 1 must be true or false, not int"),
        ("ready", "true", "ready = 'true' must be true or false, not str"),
        ("label", 5, "label = 5 must be a string, not int"),
        ("label", b"x", "label = b'x' must be a string, not bytes"),
        ("data", "x", "data = 'x' must be bytes, not str"),
        ("last_round", 1.5, "last_round = 1.5 must be a whole number, not float"),
        ("last_round", False, "last_round = False must be a whole number, not bool"),
    ],
)
def test_another_type_is_refused(name: str, value: Any, message: str) -> None:
    assert message in problem(Thing, **{"serial_number": 1, name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("serial_number", -1, "serial_number = -1 must be >= 0"),
        ("serial_number", 2**63, f"serial_number = {2**63} must fit 64 bits"),
        ("serial_number", 10**400, "0 must fit 64 bits"),
        ("keep_rate", 0, "keep_rate = 0.0 must be in (0, 1]"),
        ("keep_rate", 1.01, "keep_rate = 1.01 must be in (0, 1]"),
        ("keep_rate", math.nan, "keep_rate = nan must be in (0, 1]"),
        ("keep_rate", -math.inf, "keep_rate = -inf must be in (0, 1]"),
        ("keep_rate", 10**400, "0 must fit 64 bits"),
        ("seconds", math.inf, "seconds = inf must be >= 0"),
        ("last_round", -2, "last_round = -2 must be >= -1"),
    ],
)
def test_an_illegal_value_is_named_with_what_is_legal(name: str, value: Any, message: str) -> None:
    found = problem(Thing, **{"serial_number": 1, name: value})
    assert message in found and len(found) < 200


@pytest.mark.parametrize(
    ("legal", "inside", "outside", "words"),
    [
        (POSITIVE, [1e-300, 1, 1e300, 10**400], [0, -1, math.inf, math.nan], "> 0"),
        (COUNT, [1, 10**400], [0, 0.5, math.inf, math.nan], ">= 1"),
        (COUNT_OR_NONE, [0, 1], [-1, -(10**400), math.inf, -math.inf, math.nan], ">= 0"),
        (SHARE, [0, 0.5, 1], [-1e-9, 1.000001, math.nan], "in [0, 1]"),
        (PROPER_SHARE, [1e-9, 1], [0, 1.000001, math.nan], "in (0, 1]"),
        (Range(1e-5, 100), [1e-5, 100], [9e-6, 101, math.nan], "in [1e-05, 100]"),
        (Range(0, 2**32 - 1), [0, 2**32 - 1], [2**32], "in [0, 4294967295]"),
    ],
)
def test_ranges(legal: Range, inside: list[Any], outside: list[Any], words: str) -> None:
    assert str(legal) == words
    assert all(value in legal for value in inside)
    assert not any(value in legal for value in outside)


@pytest.mark.parametrize("bound", [0.01, 100])
def test_bounds_of_single_precision_are_legal_on_both_ends(bound: float) -> None:
    made = Packed(coarse_step=bound)  # float32(0.01) < 0.01
    assert made.coarse_step == np.float32(bound)
    assert Packed.from_bytes(made.to_bytes()) == made
    beyond = float(np.nextafter(np.float32(bound), np.float32(0 if bound < 1 else 1e3)))
    assert f"coarse_step = {beyond} must be in [0.01, 100]" in problem(Packed, coarse_step=beyond)


def test_what_single_precision_cannot_hold_is_named_as_it_was_given() -> None:
    assert "coarse_step = 1e+300 must be" in problem(Packed, coarse_step=1e300)
    assert "coarse_step = 0.00999 must be" in problem(Packed, coarse_step=0.00999)


def test_names() -> None:
    assert str(OneOf(("a", "b"))) == "one of a, b"
    assert Colour().kind == "none"
    assert problem(Colour, kind="blue") == "kind = 'blue' must be one of none, red, green"
    check("name", "a", OneOf(("a", "b")))
    with pytest.raises(OptionError, match="name = 'c' must be one of a, b"):
        check("name", "c", OneOf(("a", "b")))


def test_a_long_value_is_cut_in_the_error() -> None:
    assert len(problem(Colour, kind="x" * 10_000)) < 150


def test_errors_are_value_errors() -> None:
    with pytest.raises(ValueError, match="shade"):
        Colour(shade=0)
    with pytest.raises(CodecError, match="shade"):
        Colour(shade=0)


def test_options_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Colour().shade = 3  # type: ignore[misc]  # the point
    assert replace(Colour(), shade=3) == Colour("none", 3)
    with pytest.raises(OptionError):
        replace(Colour(), shade=17)


def test_a_field_that_is_required() -> None:
    with pytest.raises(TypeError, match="serial_number"):
        Thing()
    with pytest.raises(CodecError, match=r"^message lacks serial-number$"):
        Thing.from_entries({})


def test_a_field_of_another_kind_is_left_alone() -> None:
    @dataclass(frozen=True)
    class Shaped(Options):
        """As `codec.SampleSpec`, which checks its shape itself."""

        sides: tuple[int, ...]

    assert Shaped((1, 2)).sides == (1, 2)


def test_nested_options_may_be_given_by_the_name_that_is_their_first_field() -> None:
    assert thing(colour="red").colour == Colour("red")
    assert thing(packed="tight").packed == Packed("tight")
    assert Colour.coerce("red") == Colour("red")
    given_colour = Colour("green", 5)
    assert Colour.coerce(given_colour) is given_colour
    with pytest.raises(OptionError, match="kind = 'blue' must be one of"):
        thing(colour="blue")
    with pytest.raises(OptionError, match="kind = 5 must be a string, not int"):
        thing(colour=5)


# Entries of messages


@PROPERTY
@given(THINGS)
def test_entries_come_back(given_thing: Thing) -> None:
    entries = given_thing.to_entries()
    assert Thing.from_entries(entries) == given_thing
    assert Thing.from_entries(through_flower(entries)) == given_thing


def test_entries_have_keys_in_kebab_case_and_leave_out_none() -> None:
    made = thing(colour=Colour("red", 3), packed=Packed("tight", 0.25))
    assert made.to_entries() == {
        "serial-number": 1, "keep-rate": 1.0, "ready": False, "label": "",
        "colour": "red", "colour-shade": 3, "packed": made.packed.to_bytes(),
    }  # fmt: skip


def test_telemetry_travels_where_it_says_anything() -> None:
    assert "seconds" not in thing().to_entries()
    assert thing(seconds=2.5).to_entries()["seconds"] == 2.5
    assert Thing.from_entries(thing().to_entries()).seconds == 0.0


def test_lists_are_entries_of_their_own_and_empty_ones_none() -> None:
    made = Listed(names=("a", "b"), sides=[3, np.int64(4)], parts=(b"x",), note=("n",))  # type: ignore[arg-type]  # coerced
    assert made.sides == (3, 4) and type(made.sides[1]) is int
    entries = made.to_entries()
    assert entries == {"names": ["a", "b"], "sides": [3, 4], "parts": [b"x"], "note": ["n"]}
    assert Listed.from_entries(entries) == made
    assert Listed().to_entries() == {}
    assert Listed.from_entries({}) == Listed()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"names": "ab"}, "^names = 'ab' must be a list, each a string"),
        ({"names": ["a", 1]}, "^names = .* must be a list, each a string"),
        ({"sides": [1.5]}, "^sides = .* must be a list, each a whole number"),
        ({"sides": [True]}, "^sides = .* must be a list, each a whole number"),
        ({"parts": ["x"]}, "^parts = .* must be a list, each bytes"),
        ({"parts": b"x"}, "^parts = b'x' must be a list, each bytes"),
    ],
)
def test_illegal_lists_are_named(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Listed.from_entries(entries)
    assert Listed.from_entries({"note": 5}).note == ()  # odd telemetry costs nobody a message


def test_metrics_are_named_by_their_keys() -> None:
    assert Listed.metric_keys() == {"in-use"}
    assert Thing.metric_keys() == set()


def test_entries_of_no_meaning_are_left_alone() -> None:
    assert Thing.from_entries({"serial-number": 4, "later": object(), "keep_rate": 5}) == thing(
        serial_number=4
    )


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"keep-rate": 0.0}, "^keep-rate = 0.0 must be in"),
        ({"serial-number": True}, "^serial-number = True must be a whole number, not bool"),
        ({"last-round": -5}, "^last-round = -5 must be >= -1"),
        ({"data": "text"}, "^data = 'text' must be bytes"),
        ({"colour": "blue"}, "^colour = 'blue' must be one of"),
        ({"colour-shade": 0}, "^colour-shade = 0 must be in"),
        ({"packed": "loose"}, "^packed = 'loose' must be bytes, not str"),
        ({"packed": b"123"}, "3 bytes are no options"),
        ({"packed": Packed().to_bytes()[:1] + bytes(4)}, "coarse_step = 0.0 must be in"),
    ],
)
def test_errors_of_entries_have_their_keys(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(CodecError, match=message):
        Thing.from_entries({"serial-number": 1, **entries})


def test_all_missing_entries_are_named() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Two(Options):
        """Two fields."""

        second_one: int = required(int, "two")
        first_one: bytes = required(bytes, "one")

    with pytest.raises(CodecError, match=r"^message lacks first-one, second-one$"):
        Two.from_entries({"first_one": b""})


@pytest.mark.parametrize(
    "value", [None, "soon", b"x", -1.0, math.nan, math.inf, True, [1.0], 10**400]
)
def test_telemetry_of_no_use_becomes_the_default(value: Any) -> None:
    entries = {"serial-number": 1, "seconds": value}
    assert Thing.from_entries(entries) == thing()
    assert "seconds" in problem(Thing, serial_number=1, seconds=value)  # but not from Python
    assert Thing.from_entries({"serial-number": 1, "seconds": 3}).seconds == 3.0


def test_a_contradiction_is_named_by_its_key() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Picky(Box):
        """A box that is never ready."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.keep_rate < 1 and self.ready:
                raise OptionError("keep_rate", "contradicts ready")
            if self.count > 100:
                raise OptionError("elsewhere", "is what it is about")

    with pytest.raises(OptionError, match=r"^keep_rate contradicts ready"):
        Picky(keep_rate=0.5, ready=True)
    for read in (Picky.from_entries, Picky.from_flat):
        with pytest.raises(OptionError, match=r"^keep-rate contradicts ready"):
            read({"keep-rate": 0.5, "ready": True})
        with pytest.raises(OptionError, match=r"^elsewhere is"):
            read({"count": 101})


# Run config


@PROPERTY
@given(BOXES)
def test_flat_values_come_back(box: Box) -> None:
    flat = box.to_flat()
    assert Box.from_flat(flat) == box
    assert set(flat) == {key for key, _ in flat_fields(Box)}
    assert all(isinstance(value, bool | int | float | str) for value in flat.values())


@PROPERTY
@given(st.floats(0.01, 100))
def test_single_precision_is_written_as_short_as_it_can_be(step: float) -> None:
    made = Packed(coarse_step=step)
    written = made.to_flat()["coarse-step"]
    assert isinstance(written, float)
    assert np.float32(written) == np.float32(step)
    assert len(repr(written)) <= len(repr(made.coarse_step))
    assert Packed(coarse_step=0.55).to_flat()["coarse-step"] == 0.55


def test_absent_keys_take_their_default() -> None:
    assert Box.from_flat({}) == Box()
    assert Box.from_flat({"coarse-step": 0.25, "colour": "red"}) == Box(
        packed=Packed(coarse_step=0.25), colour=Colour("red")
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 1.0}, "^count = 1.0 must be a whole number, not float"),
        ({"ready": 1}, "^ready = 1 must be true or false"),
        ({"coarse-step": 0.0}, "^coarse-step = 0.0 must be in"),
        ({"colour-shade": 17}, "^colour-shade = 17 must be in"),
        ({"packing": b"loose"}, "^packing = b'loose' must be a string, not bytes"),
    ],
)
def test_errors_of_flat_values_have_their_keys(values: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Box.from_flat(values)


def test_keys_and_kinds_of_fields() -> None:
    assert [key for key, _ in flat_fields(Box)] == [
        "keep-rate", "ready", "label", "count", "colour", "colour-shade", "packing", "coarse-step",
    ]  # fmt: skip
    declared = own_fields(Box)
    assert list(declared) == [f.name for f in fields(Box)]
    assert key_of(declared["keep_rate"]) == "keep-rate"
    assert key_of(own_fields(Colour)["kind"]) == "colour"
    kinds = [kind_name(declared[name]) for name in ("keep_rate", "ready", "label", "count")]
    assert kinds == ["a number", "true or false", "a string", "a whole number"]


# From options to options, and to keyword arguments


def test_pick_takes_fields_of_the_same_name() -> None:
    box = Box(count=7, keep_rate=0.5)
    assert pick(Lid, box) == Lid(count=7)
    assert pick(Lid, box, weight=2.5, count=8) == Lid(count=8, weight=2.5)
    assert pick(Thing, box, serial_number=1) == thing(keep_rate=0.5)
    with pytest.raises(OptionError, match=r"^weight"):
        pick(Lid, box, weight=0.0)


def test_values_of_groups() -> None:
    box = Box(count=7, colour=Colour("red"))
    assert values_of(box, Box) == {name: getattr(box, name) for name in own_fields(Box)}

    @dataclass(frozen=True, kw_only=True)
    class Both(Lid, Box):
        """Both."""

    both = Both(count=5, weight=2.0)
    assert values_of(both, Lid) == {"count": 5, "weight": 2.0}
    assert split_options(values_of(both, Lid, Box), Lid, Box) == (pick(Lid, both), pick(Box, both))


def test_split_options_gives_every_group_its_own() -> None:
    box, lid = split_options({"count": 7, "weight": 2.0, "colour": "red"}, Box, Lid)
    assert box == Box(count=7, colour=Colour("red"))
    assert lid == Lid(count=7, weight=2.0)
    assert split_options({}, Box) == (Box(),)
    with pytest.raises(OptionError, match=r"^count = 0 must be >= 1"):
        split_options({"count": 0}, Box, Lid)


def test_an_unknown_keyword_names_the_nearest_one() -> None:
    with pytest.raises(TypeError, match=r"keyword argument 'wieght'; did you mean 'weight'\?"):
        split_options({"wieght": 2.0}, Box, Lid)
    with pytest.raises(TypeError, match="known: colour, count, keep_rate, label, packed, ready"):
        split_options({"xyz": 2.0}, Box)


def test_did_you_mean() -> None:
    assert did_you_mean("keep-rat", ["keep-rate", "count"]) == "did you mean 'keep-rate'?"
    assert did_you_mean("zzz", ["b", "a"], what="known keys") == "known keys: a, b"


@takes_options(Box, Lid)
class Shop:
    """Sells boxes.

    Parameters
    ----------
    owner : str
        Who runs it.
    """

    def __init__(self, owner: str, *, city: str = "Bern", **options: Any) -> None:
        self.owner, self.city = owner, city
        self.box, self.lid = split_options(options, Box, Lid)


def test_options_stand_in_the_signature() -> None:
    shown = inspect.signature(Shop).parameters
    assert list(shown) == ["owner", "city", *own_fields(Box), "weight"]
    assert shown["owner"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert all(shown[name].kind is inspect.Parameter.KEYWORD_ONLY for name in list(shown)[1:])
    assert shown["city"].default == "Bern"
    assert shown["keep_rate"].default == 1.0 and shown["keep_rate"].annotation is float
    assert shown["colour"].default == Colour() and shown["colour"].annotation is Colour


def test_options_stand_in_the_documentation() -> None:
    doc = inspect.getdoc(Shop)
    assert doc is not None and doc.startswith("Sells boxes.")
    assert "Parameters\n----------\nowner : str\n    Who runs it.\n\nOther Parameters\n---" in doc
    assert "keep_rate : float in (0, 1], default=1.0\n    Share that is kept.\n" in doc
    assert "label : str, default=''\n    Free text.\n" in doc
    assert "colour : Colour or str, default='none'\n    Colour of a thing.\n" in doc
    assert doc.count("count : int") == 1


def test_a_decorated_class_takes_what_it_shows() -> None:
    shop = Shop("Ann", city="Rome", count=9, weight=2.0, colour="green")
    assert (shop.owner, shop.city) == ("Ann", "Rome")
    assert shop.box == Box(count=9, colour=Colour("green"))
    assert shop.lid == Lid(count=9, weight=2.0)
    bound = inspect.signature(Shop).bind("Ann", count=9)
    assert bound.arguments == {"owner": "Ann", "count": 9}
    with pytest.raises(TypeError, match="did you mean 'colour'"):
        Shop("Ann", color="green")


def test_the_options_of_the_codec_are_packed() -> None:
    assert issubclass(CodecOptions, PackedOptions)
    with pytest.raises(NotImplementedError):
        PackedOptions().to_bytes()
    with pytest.raises(NotImplementedError):
        PackedOptions.from_bytes(b"")
