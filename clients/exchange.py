"""What the message handlers share: reading instructions, loading the model, timing."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from flwr.app import ArrayRecord, ConfigRecord, Message

from codec import CodecError, CodecOptions

if TYPE_CHECKING:
    from torch import nn

T = TypeVar("T")


def config_record(msg: Message) -> ConfigRecord:
    """Return an instruction's record; `CodecError` if there is none."""
    record = msg.content.get("config")
    if not isinstance(record, ConfigRecord):
        raise CodecError(f"content['config'] must be a ConfigRecord, got {type(record).__name__}")
    return record


def from_record(cls: type[T], record: Mapping[str, Any]) -> T:
    """Make a dataclass from entries named as its fields, in kebab case.

    Parameters
    ----------
    cls : type
        A dataclass whose fields are int, float, str, bool, one of these or None, or
        `CodecOptions` (bytes on the wire).
    record : mapping
        Entries of no meaning to `cls` are left alone.

    Raises
    ------
    CodecError
        On a missing entry, a wrong type or a value that `cls` refuses.
    """
    values, missing = {}, []
    for field in fields(cls):  # type: ignore[arg-type]
        key = field.name.replace("_", "-")
        if key in record:
            values[field.name] = _of_type(key, record[key], field.type)
        elif field.default is MISSING:
            missing.append(key)
    if missing:
        raise CodecError(f"instruction lacks {', '.join(sorted(missing))}")
    return cls(**values)


def _of_type(key: str, value: Any, kind: Any) -> Any:
    if kind is CodecOptions:
        return CodecOptions.from_bytes(_of_type(key, value, bytes))
    if kind is float and type(value) is int:
        return float(value)
    legal = get_args(kind) or (kind,)  # int | None: an int, or no entry
    if type(value) not in legal:
        raise CodecError(f"{key} = {value!r} must be of type {legal[0].__name__}")
    return value


def require_range(key: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise `CodecError` with key, value and legal range unless ``low <= value <= high``."""
    if not low <= value <= high:
        raise CodecError(f"{key} = {value} outside [{low:g}, {high:g}]")


def load_model(factory: "Callable[[], nn.Module]", arrays: object) -> "nn.Module":
    """Return the factory's model in the state that the server sent, in training mode.

    The factory may return one and the same model each time. `CodecError` if no state came.
    """
    if not isinstance(arrays, ArrayRecord):
        raise CodecError(
            f"content['arrays'] must be the model's ArrayRecord, got {type(arrays).__name__}"
        )
    model = factory()
    model.load_state_dict(arrays.to_torch_state_dict())
    return model.train()


@contextmanager
def timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Add the time of a block to an entry of `seconds`."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
