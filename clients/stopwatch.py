"""Where a client reads the clock."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Stopwatch:
    """Time of the stages of a reply.

    Attributes
    ----------
    seconds : dict of str to float
        By stage, in seconds.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of a block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def entries(self) -> dict[str, Any]:
        """Return the times as the fields that a `codec.messages.Reply` has for them."""
        return {f"seconds_{name}": value for name, value in self.seconds.items()}
