"""Tests of fl_app.run_log: what of a run is logged, and how it reads."""

import logging
import time

import pytest
from flwr.common import log

from fl_app.run_folder import RoundRecord
from fl_app.run_log import RoundClock, failures_of, orderly_log, summary_lines
from fl_app.words import counts, duration, size
from strategies.round_book import RoundBook


@pytest.fixture(autouse=True)
def _level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "flwr")


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_empty_lines_and_what_a_round_tells_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    with orderly_log():
        for text in ("", "\t", "configure_train: asking 3 of 3 nodes", "hello"):
            log(logging.INFO, text)
        log(logging.WARNING, "careful")
    log(logging.INFO, "")
    assert lines(caplog) == ["hello", "careful", ""]


def test_what_flowers_loop_dumps_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    path = "/venv/flwr/serverapp/strategy/strategy.py"
    logger = logging.getLogger("flwr")
    with orderly_log():
        for level, text in ((logging.INFO, "[ROUND 1/3]"), (logging.WARNING, "careful")):
            logger.handle(logger.makeRecord("flwr", level, path, 1, text, (), None, "start"))
    assert lines(caplog) == ["careful"]


def test_a_thousand_like_warnings_are_three_and_a_count(caplog: pytest.LogCaptureFixture) -> None:
    with orderly_log() as journal:
        for _ in range(2):
            for node in range(1000):
                log(logging.WARNING, "reply of node %d skipped, %s", node, "no-reply")
            journal.next_round()
    shown = [f"reply of node {node} skipped, no-reply" for node in range(3)]
    more = "997 more of these: reply of node ... skipped, ..."
    assert lines(caplog) == [*shown, more, *shown, more]


def test_of_like_tracebacks_the_first_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    with orderly_log() as journal:
        for node in range(40):
            log(logging.ERROR, "Traceback of %d\n" + "  File\n" * 20, node)
            journal.next_round()
    assert [line.split("\n")[0] for line in lines(caplog)] == ["Traceback of 0"]


def test_colours_are_left_out_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    [handler] = [h for h in logging.getLogger("flwr").handlers if hasattr(h, "colored")]
    monkeypatch.setattr(handler, "colored", True)
    with orderly_log():
        assert handler.colored
    monkeypatch.setenv("NO_COLOR", "1")
    with orderly_log():
        assert not handler.colored


def test_the_clock_tells_a_round_and_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = RoundClock(4)
    told = []
    for server_round, seconds in enumerate((50, 20, 40, 60, 80)):
        now[0] += seconds
        told.append(clock.lap(server_round))
    assert told == [
        *("", ", 20 s, 1 min 0 s left", ", 40 s, 1 min 0 s left"),
        *(", 1 min 0 s, 40 s left", ", 1 min 20 s"),
    ]
    assert clock.seconds == {1: 20, 2: 40, 3: 60, 4: 80}


def test_failures_are_those_since_the_last_line() -> None:
    assert failures_of({"error": 2}, {"error": 2}) == ""
    told = failures_of({"error": 2}, {"error": 3, "no-reply": 1200})
    assert told == ", replies failed: 1,200 no-reply, 1 error"


def test_the_summary_has_five_lines() -> None:
    book = RoundBook()
    book.samples_sent, book.clipped = 1200, 7
    book._kept_sum = 1200.0
    book.skipped.update({"truncated file": 2, "not finite": 1})
    book.failures.update({"error": 4})
    record = RoundRecord(8, 0.958, 0.13, 150, 1200, 57_800, 6_400, 7_900, 10_200, 0, 0)
    seconds = {"total": 95.0, "round_trip": 30.0, "decode": 0.4, "train": 62.0, "client_encode": 3}
    assert summary_lines(book, record, seconds, "/runs/x") == [
        "samples: 1,200 sent, 3 skipped (2 truncated file, 1 not finite), 7 values clipped, "
        "100.0 % of their variance kept",
        "content: 57.8 kB up, 6.4 kB down; envelope: 7.9 kB up, 10.2 kB down",
        "accuracy: 95.80 % after 150 steps; replies failed: 4 error",
        "seconds: 1 min 35 s in all, of them 30 s in round trips, 0.4 s decoding, "
        "1 min 2 s training",
        "run folder: /runs/x",
    ]


def test_numbers_in_words() -> None:
    assert [size(n) for n in (0, 999, 1000, 999_949, 999_950, 5e15)] == [
        *("0 B", "999 B", "1.0 kB", "999.9 kB", "1.0 MB", "5000.0 TB"),
    ]
    assert [duration(s) for s in (0, 9.94, 9.96, 59.4, 59.6, 3599.6, 7325)] == [
        *("0.0 s", "9.9 s", "10 s", "59 s", "1 min 0 s", "1 h 0 min", "2 h 2 min"),
    ]
    assert counts({"b": 1, "a": 1, "c": 2000}) == "2,000 c, 1 a, 1 b"
