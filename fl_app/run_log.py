"""The log of a run: a line a round, a word while it takes long, and a summary of five lines."""

import logging
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from logging import INFO, WARNING

from flwr.common import log
from flwr.common.logger import FLOWER_LOGGER, update_console_handler

from fl_app.run_folder import RoundRecord
from fl_app.words import counts, duration
from strategies.round_book import RoundBook

_LONG = 5  # lines beyond which a record is taken for a traceback
_ALIKE = 3  # warnings of a kind that one round shows
# What a line a round says better, and what the run folder has.
_TOLD_BY_ROUNDS = ("configure_train: asking", "aggregate_train: ")
_FIGURE = re.compile(r"%[-.\d]*[a-z]")  # what sets like warnings apart
_LOOPS = (  # Flower's, and ours which says the same
    os.path.join("flwr", "serverapp", "strategy", ""),
    os.path.join("strategies", "round_loop.py"),
)


class OrderlyLog(logging.Filter):
    """Keeps out of Flower's log what a line a round tells, and crowds of like warnings.

    The loop of the rounds dumps the configuration as a tree, empty lines, each metric twice and
    all of them at the end. Warnings and whatever is said elsewhere stay; of those that differ in
    their figures only, as one for each of 1,000 clients, a round shows the first few and a count;
    of tracebacks that are logged at one place, a run shows the first.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: Counter[str] = Counter()
        self._long: set[tuple[str, int]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is shown."""
        if record.levelno <= INFO:
            return not self._is_noise(record)
        if record.getMessage().count("\n") > _LONG:
            place = (record.pathname, record.lineno)
            known, self._long = place in self._long, self._long | {place}
            return not known
        kind = str(record.msg)
        self._seen[kind] += 1
        return self._seen[kind] <= _ALIKE

    def next_round(self) -> None:
        """Tell how many warnings of a kind were too many, and show new ones again."""
        seen, self._seen = self._seen, Counter()
        for kind, number in seen.items():
            if number > _ALIKE:
                alike = _FIGURE.sub("...", kind).replace("%%", "%")
                log(WARNING, "%s more of these: %s", f"{number - _ALIKE:,}", alike)
        self._seen.clear()

    def _is_noise(self, record: logging.LogRecord) -> bool:
        if any(place in record.pathname for place in _LOOPS) or record.funcName == "summary":
            return True
        message = record.getMessage()
        return not message.strip() or message.startswith(_TOLD_BY_ROUNDS)


@contextmanager
def orderly_log() -> Iterator[OrderlyLog]:
    """Keep the log in order for the time of a run; without colours if ``NO_COLOR`` is set."""
    if os.environ.get("NO_COLOR"):
        update_console_handler(colored=False)
    orderly = OrderlyLog()
    FLOWER_LOGGER.addFilter(orderly)
    try:
        yield orderly
    finally:
        orderly.next_round()
        FLOWER_LOGGER.removeFilter(orderly)


class RoundClock:
    """Seconds of each round, and an estimate of those that are left.

    Parameters
    ----------
    num_rounds : int
        Of the run.
    before : int
        Those that another process has gone through.

    Attributes
    ----------
    seconds : dict[int, float]
        What each round took, by its number, to a millisecond; not those of another process.
    """

    def __init__(self, num_rounds: int, before: int = 0) -> None:
        self.seconds: dict[int, float] = {}
        self._num_rounds, self._before = num_rounds, before
        self._started = self._lap = time.perf_counter()

    def lap(self, server_round: int) -> str:
        """Return how long a round took, and how long the others will, as the end of a line."""
        now = time.perf_counter()
        taken, self._lap = now - self._lap, now
        if not server_round:
            self._started = now
            return ""
        self.seconds[server_round] = round(taken, 3)
        left = self._num_rounds - server_round
        text = f", {duration(taken)}"
        if left:
            each = (now - self._started) / (server_round - self._before)
            text += f", {duration(each * left)} left"
        return text


def summary_lines(
    book: RoundBook, last: RoundRecord, seconds: Mapping[str, float], folder: str
) -> list[str]:
    """Return what a run came to: samples, bytes, accuracy, seconds and where the results are."""
    return [
        f"samples: {_samples(book)}",
        last.traffic(),
        f"accuracy: {last.score()} after {last.steps:,} steps; {_failures(book)}",
        f"seconds: {_seconds(seconds)}",
        f"run folder: {folder}",
    ]


def failures_of(before: Mapping[str, int], now: Mapping[str, int]) -> str:
    """Return what failed since, as the end of a line."""
    new = Counter(now) - Counter(before)
    return f", replies failed: {counts(new)}" if new else ""


def _samples(book: RoundBook) -> str:
    skipped = f"{book.skipped.total():,} skipped"
    if book.skipped:
        skipped += f" ({counts(book.skipped)})"
    twice = [f"{book.duplicates:,} of them known already"] if book.duplicates else []
    parts = [f"{book.samples_sent:,} sent", *twice, skipped, f"{book.clipped:,} values clipped"]
    if book.samples_sent:
        parts.append(f"{100 * book.variance_kept:.1f} % of their variance kept")
    if book.codecs:
        parts.append(f"codec auto: {counts(book.chosen_codecs())}")
    return ", ".join(parts)


def _failures(book: RoundBook) -> str:
    return f"replies failed: {counts(book.failures) or 'none'}"


def _seconds(seconds: Mapping[str, float]) -> str:
    stages = {
        "in round trips": seconds.get("round_trip"),
        "decoding": seconds.get("decode"),
        "training": seconds.get("train"),
    }
    parts = [f"{duration(value)} {name}" for name, value in stages.items() if value is not None]
    total = duration(seconds["total"])
    return f"{total} in all" + (f", of them {', '.join(parts)}" if parts else "")
