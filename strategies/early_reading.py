"""Reading replies while others are still out, so that little is left to do after the last one."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from flwr.app import Message

ReadT = TypeVar("ReadT")


@dataclass(frozen=True)
class _Begun:
    """A reply that is being read.

    Attributes
    ----------
    message : Message
        Kept, so that no other can have its identity.
    entries : dict
        Its records as they arrived.
    read : callable
    result : Future
    """

    message: Message
    entries: dict[str, dict[str, Any]]
    read: Callable[[Message], Any]
    result: Future[Any]


class EarlyReader:
    """Reads replies in one thread beside that which waits for the others.

    One thread, as decoding holds the interpreter's lock nearly all the time: two were no faster.
    A process would be, on a core that no simulated client needs, for a start of seconds and a copy
    of each result.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "reader")
        self._begun: dict[int, _Begun] = {}

    def begin(self, message: Message, read: Callable[[Message], object]) -> None:
        """Read a reply in the background.

        Parameters
        ----------
        message : Message
        read : callable
            Decodes and checks a reply. It must depend on nothing that changes before `take`.
        """
        result = self._thread.submit(read, message)
        self._begun[id(message)] = _Begun(message, _entries(message), read, result)

    def take(self, message: Message, read: Callable[[Message], ReadT]) -> ReadT:
        """Return what a reply holds, or raise what reading it raised.

        It is read here if that was not begun, or if a host's code has changed the reply since.
        """
        begun = self._begun.pop(id(message), None)
        if begun is None or begun.read != read or not _are_same(begun.entries, _entries(message)):
            return read(message)
        return cast(ReadT, begun.result.result())

    def forget(self) -> None:
        """Drop what nobody took."""
        for begun in self._begun.values():
            begun.result.cancel()
        self._begun = {}

    def close(self) -> None:
        """End the thread."""
        self.forget()
        self._thread.shutdown()


def _entries(message: Message) -> dict[str, dict[str, Any]]:
    if not message.has_content():
        return {}
    return {name: dict(record) for name, record in message.content.items()}


def _are_same(some: dict[str, dict[str, Any]], others: dict[str, dict[str, Any]]) -> bool:
    """Whether records hold the very same objects; values that are equal need not be compared."""
    return some.keys() == others.keys() and all(
        some[name].keys() == others[name].keys()
        and all(value is others[name][key] for key, value in some[name].items())
        for name in some
    )
