"""Options that are declared once, as fields of a dataclass, and what is derived from them.

A field made by `option` carries its default, its meaning and its legal values. From these come the
checks of every constructor, the entries of messages, the keys of the run config and their comments
in ``pyproject.toml``, and the keyword arguments of the strategies.
"""

import difflib
import inspect
import math
import numbers
import re
import textwrap
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from decimal import Decimal
from functools import wraps
from types import UnionType
from typing import Any, Self, TypeVar, cast, get_args, get_origin

import numpy as np

from codec.errors import CodecError, OptionError

T = TypeVar("T")
OptionsT = TypeVar("OptionsT", bound="Options")
ClassT = TypeVar("ClassT", bound=type)

Scalar = bool | int | float | str
Entry = bool | int | float | str | bytes | list[int] | list[str] | list[bytes]


@dataclass(frozen=True)
class Range:
    """Interval of legal finite numbers.

    Attributes
    ----------
    low, high : float
        Bounds; `high` is included, and `low` unless `open_low`.
    open_low : bool
        Whether `low` itself is not legal.
    """

    low: float
    high: float = math.inf
    open_low: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and value <= self.high and value < math.inf

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"{'>' if self.open_low else '>='} {self.low:g}"
        high = self.high if isinstance(self.high, int) else f"{self.high:g}"
        return f"in {'(' if self.open_low else '['}{self.low:g}, {high}]"


class OneOf(tuple[str, ...]):
    """Legal names of an enumerated option."""

    def __str__(self) -> str:
        return "one of " + ", ".join(self)


POSITIVE = Range(0, open_low=True)
SHARE = Range(0, 1)
PROPER_SHARE = Range(0, 1, open_low=True)
COUNT = Range(1)
COUNT_OR_NONE = Range(0)


def option(
    default: T,
    doc: str,
    legal: Range | OneOf | None = None,
    *,
    key: str = "",
    float32: bool = False,
    telemetry: bool = False,
    metric: bool = False,
    size: bool = False,
) -> T:
    """Declare an option, or a field of a message, in the body of an `Options` class.

    Parameters
    ----------
    default : object
        Default value; its type is the option's. ``MISSING``: the field must be given.
    doc : str
        Meaning, in a few words.
    legal : Range or OneOf, optional
        Legal values; any of the type if None.
    key : str
        Its name in messages and run config; by default the field's, in kebab case.
    float32 : bool
        Keep the value in single precision, as it travels.
    telemetry : bool
        A received value that is missing or odd becomes the default: it costs nobody a reply.
    metric : bool
        A number of a reply that Flower may aggregate: it travels in the record of metrics.
    size : bool
        A number of bytes that may be given as text, such as "300kB" or "2MB".
    """
    metadata = {
        "doc": doc,
        "legal": legal,
        "key": key,
        "float32": float32,
        "telemetry": telemetry,
        "metric": metric,
        "size": size,
    }
    value: T = field(default=default, metadata=metadata)
    return value


def redeclared(group: type["Options"], name: str, default: T) -> T:
    """Declare an option of a group anew, with another default and nothing else changed."""
    declared = own_fields(group)[name]
    value: T = field(default=default, metadata=declared.metadata)
    return value


def required(
    kind: type[T], doc: str, legal: Range | OneOf | None = None, *, metric: bool = False
) -> T:
    """Declare a field that has no default; `kind` is its type."""
    return cast(T, option(MISSING, doc, legal, metric=metric))


def choice(doc: str, *names: str, key: str = "") -> str:
    """Declare an option that has one of some names; the first is the default."""
    return option(names[0], doc, OneOf(names), key=key)


@dataclass(frozen=True)
class Options:
    """Base of all groups of options and of the messages: checks every field when it is made.

    Raises
    ------
    OptionError
        If a value has another type or is not legal; names option, value and what is legal.
    """

    def __post_init__(self) -> None:
        for name, declared in own_fields(type(self)).items():
            object.__setattr__(self, name, _checked(name, getattr(self, name), declared))

    @classmethod
    def coerce(cls, value: Any) -> Self:
        """Return options as they are, or made from the name that is their first field."""
        return value if isinstance(value, cls) else cast(Any, cls)(value)

    def to_entries(self) -> dict[str, Entry]:
        """Return the fields as entries of a message; None and what is empty by default is not."""
        return dict(_entries(self, packed=True))

    @classmethod
    def metric_keys(cls) -> set[str]:
        """Return the keys of the fields that travel in the record of metrics."""
        return {key for key, declared in flat_fields(cls) if declared.metadata.get("metric")}

    @classmethod
    def from_entries(cls, entries: Mapping[str, Any]) -> Self:
        """Read what `to_entries` wrote; entries of no meaning here are left alone.

        Raises
        ------
        CodecError
            On a missing entry, a wrong type or an illegal value; names what is legal.
        """
        return _read(cls, entries, packed=True)

    def to_flat(self) -> dict[str, Scalar]:
        """Return the fields, those of nested options among them, as entries of a run config."""
        return cast(dict[str, Scalar], dict(_entries(self, packed=False)))

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_flat` wrote; keys that are absent take their default.

        Raises
        ------
        CodecError
            On a wrong type or an illegal value.
        """
        return _read(cls, values, packed=False)


class PackedOptions(Options):
    """Options that travel as one entry of bytes."""

    def to_bytes(self) -> bytes:
        """Return the options as they travel."""
        raise NotImplementedError

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` wrote; `PayloadError` if the bytes are not options."""
        raise NotImplementedError


def pick(cls: type[OptionsT], source: Options, **others: Any) -> OptionsT:
    """Return options of a class with the values of another's fields of the same names.

    Parameters
    ----------
    cls : type
        What is made.
    source : Options
        Where values come from; fields that `cls` has not are left alone.
    **others
        Values that go before those of `source`.

    Raises
    ------
    CodecError
        If `cls` refuses the values, such as those that contradict each other.
    """
    shared = own_fields(cls).keys() & own_fields(type(source)).keys()
    return cls(**{name: getattr(source, name) for name in shared} | others)


def values_of(source: Options, *groups: type[Options]) -> dict[str, Any]:
    """Return the values that options have for the fields of some groups, by name."""
    return {name: getattr(source, name) for group in groups for name in own_fields(group)}


def own_fields(cls: type) -> dict[str, Field[Any]]:
    """Return the fields of a dataclass by name."""
    return {declared.name: declared for declared in fields(cls)}


def key_of(declared: Field[Any]) -> str:
    """Return what a field is called in messages and in the run config."""
    return declared.metadata.get("key") or declared.name.replace("_", "-")


def kind_name(declared: Field[Any]) -> str:
    """Return the type of a field in words."""
    return _KINDS[cast(Any, declared.type)]


def flat_fields(cls: type[Options]) -> Iterator[tuple[str, Field[Any]]]:
    """Yield key and declaration of every field that is no group itself, nested ones included."""
    for declared in fields(cls):
        nested = _nested(declared)
        if nested is None:
            yield key_of(declared), declared
        else:
            yield from flat_fields(nested)


def check(name: str, value: float | str, legal: Range | OneOf) -> None:
    """Raise `OptionError` with name, value and what is legal unless the value is."""
    if value not in cast(Container[Any], legal):
        raise OptionError(name, f"= {value!r:.80} must be {legal}")


def did_you_mean(name: str, known: Iterable[str], what: str = "known") -> str:
    """Return a hint at the known name nearest to an unknown one, or all that are known."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"{what}: {', '.join(names)}"


# Keyword arguments


def split_options(given: Mapping[str, Any], *groups: type[Options]) -> tuple[Any, ...]:
    """Make groups of options from the keyword arguments of a strategy.

    Parameters
    ----------
    given : mapping of str to object
        Values by the names of the groups' fields; a name may belong to several groups.
    *groups : type
        Classes of options.

    Returns
    -------
    tuple
        One instance for each group.

    Raises
    ------
    TypeError
        If no group has a field of a name; names the nearest one.
    OptionError
        If a value is not legal.
    """
    _refuse_unknown(given, {name for group in groups for name in own_fields(group)})
    return tuple(
        group(**{name: given[name] for name in own_fields(group) if name in given})
        for group in groups
    )


def takes_options(*groups: type[Options]) -> Callable[[ClassT], ClassT]:
    """Show the fields of groups as keyword arguments of a class, in its signature and its help.

    The class's ``__init__`` takes them as ``**options`` and gives them to `split_options`. It is
    wrapped: an unknown keyword argument is a `TypeError` that names the nearest one.
    """
    named: dict[str, Field[Any]] = {}
    for group in groups:
        named |= own_fields(group)

    def decorate(cls: ClassT) -> ClassT:
        initialize = cls.__init__  # type: ignore[misc]  # read only
        signature = _signature_with(named, initialize)
        known = list(signature.parameters)[1:]

        @wraps(initialize)
        def checked(self: Any, *args: Any, **given: Any) -> None:
            _refuse_unknown(given, known)
            initialize(self, *args, **given)

        checked.__signature__ = signature  # type: ignore[attr-defined]
        cls.__init__ = checked  # type: ignore[misc]
        cls.__doc__ = _doc_with(named, inspect.cleandoc(cls.__doc__ or ""))
        return cls

    return decorate


def _refuse_unknown(given: Iterable[str], known: Collection[str]) -> None:
    for name in given:
        if name not in known:
            raise TypeError(f"unexpected keyword argument {name!r}; {did_you_mean(name, known)}")


def _signature_with(
    named: Mapping[str, Field[Any]], function: Callable[..., None]
) -> inspect.Signature:
    """Return a function's signature with fields in the place of its ``**options``."""
    own = [p for p in inspect.signature(function).parameters.values() if p.name != "options"]
    kind = inspect.Parameter.KEYWORD_ONLY
    shown = [
        inspect.Parameter(name, kind, default=_default(declared), annotation=declared.type)
        for name, declared in named.items()
    ]
    return inspect.Signature([*own, *shown], return_annotation=None)


def _doc_with(named: Mapping[str, Field[Any]], doc: str) -> str:
    """Return a class's documentation with fields in a section after that of its parameters."""
    lines = ["Other Parameters", "----------------"]
    for name, declared in named.items():
        lines += _documented(name, declared)
    sections = re.split(r"\n\n(?=[A-Z].*\n-+\n)", doc)
    place = [section.split("\n")[0] for section in sections].index("Parameters") + 1
    return "\n\n".join([*sections[:place], "\n".join(lines), *sections[place:]]) + "\n"


def _documented(name: str, declared: Field[Any]) -> list[str]:
    nested, legal = _nested(declared), declared.metadata.get("legal")
    default = _default(declared)
    if nested is not None:
        # They may be made from their first field, see `Options.coerce`.
        kind, text = f"{nested.__name__} or str", _first_line(nested)
        default = getattr(default, fields(nested)[0].name)
    else:
        kind = _type_name(declared.type)
        text = declared.metadata["doc"]
        if isinstance(legal, OneOf):
            kind = "{" + ", ".join(map(repr, legal)) + "}"
        elif legal is not None:
            kind = f"{kind} {legal}"
    text = f"{text[0].upper()}{text[1:].rstrip('.')}."
    indented = textwrap.wrap(text, 92, initial_indent="    ", subsequent_indent="    ")
    return [f"{name} : {kind}, default={default!r}", *indented]


def _type_name(kind: Any) -> str:
    """Return the name of a type, without what stands in its brackets."""
    if isinstance(kind, UnionType):
        return " or ".join(map(_type_name, get_args(kind)))
    return "None" if kind is type(None) else str(getattr(kind, "__name__", kind))


def _first_line(cls: type) -> str:
    return (cls.__doc__ or cls.__name__).split("\n")[0]


def _default(declared: Field[Any]) -> Any:
    if declared.default_factory is not MISSING:
        return declared.default_factory()
    return declared.default


# Checks


_KINDS = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a string",
    bytes: "bytes",
}  # fmt: skip


def _checked(name: str, value: Any, declared: Field[Any]) -> Any:
    """Return a value in the type of its field, if it is legal."""
    kind: Any = declared.type
    if isinstance(kind, UnionType):
        if value is None:
            return None
        kind = get_args(kind)[0]
    if get_origin(kind) is tuple:
        return _checked_items(name, value, get_args(kind)[0])
    if isinstance(kind, type) and issubclass(kind, Options):
        return kind.coerce(value)
    if kind not in _KINDS:
        return value
    if declared.metadata.get("size") and isinstance(value, str):
        value = _size(name, value)
    if not _has_type(value, kind):
        found = type(value).__name__
        raise OptionError(name, f"= {value!r:.80} must be {_KINDS[kind]}, not {found}")
    value = _converted(name, value, kind)
    legal, single = declared.metadata.get("legal"), declared.metadata.get("float32")
    if single and isinstance(legal, Range):
        legal = _SingleRange(legal.low, legal.high, legal.open_low)
    if legal is not None:
        check(name, value, legal)
    return _single(value) if single else value


_UNITS = {"": 1, "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def _size(name: str, text: str) -> int:
    """Return the bytes that a text such as "2MB" means."""
    found = _SIZE.fullmatch(text)
    if found is None or found[2] not in _UNITS:
        raise OptionError(
            name,
            f"= {text!r:.80} must be a number of bytes, or text such as '300kB' or '2MB' (units B, "
            "kB, MB, GB: powers of 1,000)",
        )
    return round(Decimal(found[1]) * _UNITS[found[2]])


def _converted(name: str, value: Any, kind: Any) -> Any:
    try:
        converted = kind(value)
        fits = kind is not int or -(2**63) <= converted < 2**63  # what messages hold
    except OverflowError:
        fits = False
    if not fits:
        raise OptionError(name, f"= {value!r:.80} must fit 64 bits")
    return converted


def _checked_items(name: str, value: Any, kind: type) -> tuple[Any, ...]:
    items = tuple(value) if isinstance(value, list | tuple) else None
    if items is None or not all(_has_type(item, kind) for item in items):
        raise OptionError(name, f"= {value!r:.80} must be a list, each {_KINDS[kind]}")
    return tuple(map(kind, items))


class _SingleRange(Range):
    """A range in single precision: the float32 next to a bound may lie beyond it."""

    def __contains__(self, value: float) -> bool:
        return _single(value) in Range(_single(self.low), _single(self.high), self.open_low)


def _single(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.float32(value))


def _has_type(value: Any, kind: type) -> bool:
    if isinstance(value, bool | np.bool_):
        return kind is bool
    if kind is int:
        return isinstance(value, numbers.Integral)
    if kind is float:
        return isinstance(value, numbers.Real)
    return isinstance(value, kind)


# Entries


def _nested(declared: Field[Any]) -> type[Options] | None:
    kind = declared.type
    return kind if isinstance(kind, type) and issubclass(kind, Options) else None


def _entries(options: Options, *, packed: bool) -> Iterator[tuple[str, Entry]]:
    for declared in fields(options):
        value = getattr(options, declared.name)
        if declared.metadata.get("telemetry") and value == declared.default:
            continue  # what is missing is taken for the default
        if packed and isinstance(value, PackedOptions):
            yield key_of(declared), value.to_bytes()
        elif isinstance(value, Options):
            yield from _entries(value, packed=packed)
        elif isinstance(value, tuple):
            if value:  # an empty list tells nothing of its type
                yield key_of(declared), list(value)
        elif value is not None and not (packed and value == b"" == declared.default):
            if declared.metadata.get("float32"):  # as it was written: 0.55, not 0.550000011920929
                value = float(str(np.float32(value)))
            yield key_of(declared), value


def _read(cls: type[OptionsT], entries: Mapping[str, Any], *, packed: bool) -> OptionsT:
    values: dict[str, Any] = {}
    missing: list[str] = []
    for declared in fields(cls):
        key, nested = key_of(declared), _nested(declared)
        if nested is not None and not (packed and issubclass(nested, PackedOptions)):
            values[declared.name] = _read(nested, entries, packed=packed)
        elif key in entries and (value := _received(key, entries[key], declared)) is not MISSING:
            values[declared.name] = value
        elif declared.default is MISSING and declared.default_factory is MISSING:
            missing.append(key)
    if missing:
        raise CodecError(f"message lacks {', '.join(sorted(missing))}")
    try:
        return cls(**values)
    except OptionError as error:
        known = own_fields(cls)
        if error.name in known:
            raise error.under_key(key_of(known[error.name])) from error
        raise


def _received(key: str, value: Any, declared: Field[Any]) -> Any:
    """Return an entry as the constructor takes it; MISSING for telemetry of no use."""
    nested = _nested(declared)
    if nested is not None and issubclass(nested, PackedOptions):
        if not isinstance(value, bytes):
            raise OptionError(key, f"= {value!r:.80} must be bytes, not {type(value).__name__}")
        return nested.from_bytes(value)
    if declared.metadata.get("telemetry"):
        try:
            return _checked(key, value, declared)
        except OptionError:
            return MISSING
    return value
