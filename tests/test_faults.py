"""Faults on purpose: what is counted, that it can fail, and the short form of the command."""

import json
from pathlib import Path

import numpy as np
import pytest

from sim.__main__ import main
from sim.faults import supernode
from sim.faults.bed import Bed, Size
from sim.faults.fault import FLOWER, PROCESSES, Fault
from sim.faults.federation import Federation, running
from sim.faults.kinds import befalling
from sim.faults.marks import count, mark_of, marks_in, picture, read_mark, write_pictures
from sim.faults.page import PAGE, with_table
from sim.faults.report import FAULTS, RESULTS, Row, read_rows, run_faults, table
from sim.faults.serverapp import ServerJob, run_serverapp
from sim.launcher import RunError

# Counting


def test_a_picture_tells_whose_it_is() -> None:
    assert read_mark(picture((3, 70000))) == (3, 70000)
    assert not np.array_equal(picture((3, 1)), picture((3, 2)))


def test_a_picture_with_another_bit_is_nobodys() -> None:
    for byte in (0, 3, 7, 8, 191):
        spoiled = picture((3, 1)).copy()
        spoiled.reshape(-1)[byte] ^= 1
        assert read_mark(spoiled) is None


def test_marks_survive_the_disk(tmp_path: Path) -> None:
    write_pictures(tmp_path, 2, range(5))
    assert sorted(marks_in(tmp_path)) == [(2, number) for number in range(5)]
    assert mark_of(tmp_path / "train" / "b" / "00003.png") == (2, 3)


@pytest.mark.parametrize(
    ("received", "lost", "doubled", "unknown"),
    [
        ([(0, 0), (0, 1), (1, 0)], 0, 0, 0),
        ([(0, 0), (1, 0)], 1, 0, 0),
        ([(0, 0), (0, 1), (1, 0), (1, 0), (1, 0)], 0, 2, 0),
        ([(0, 0), (0, 1), (1, 0), (7, 7)], 0, 1, 0),  # a deleted one may be there once
        ([(0, 0), (0, 1), (1, 0), None], 0, 0, 1),
        ([(0, 0), (0, 1), (1, 0), (5, 5)], 0, 0, 1),
    ],
)
def test_what_is_lost_doubled_or_unknown_is_counted(
    received: list[tuple[int, int] | None], lost: int, doubled: int, unknown: int
) -> None:
    extra = [(7, 7)] if (7, 7) in received else []
    counted = count([(0, 0), (0, 1), (1, 0)], [(7, 7)], [*received, *extra])
    assert (counted.samples, counted.lost) == (3, lost)
    assert (counted.doubled, counted.unknown) == (doubled, unknown)
    assert counted.is_exact == (not (lost or doubled or unknown))


# Kinds and rows


def test_kinds_are_many_and_have_names_of_their_own() -> None:
    names = [fault.name for fault in FAULTS]
    assert len(set(names)) == len(names) >= 10
    assert {fault.engine for fault in FAULTS} == {PROCESSES, FLOWER}
    assert {fault.engine for fault in FAULTS if fault.quick} == {PROCESSES, FLOWER}


def row(fault: str, lost: int = 0) -> Row:
    return Row(fault, PROCESSES, 1, 0, 0, 4, 10, lost, 0, 0, 2, 1.0)


def never(bed: Bed, number: int) -> None:
    raise RunError("this kind was to be skipped")


def test_what_the_results_have_is_not_run_again(tmp_path: Path) -> None:
    kinds = [Fault("one", never, 1), Fault("two", never, 1)]
    path = tmp_path / RESULTS
    path.write_text(json.dumps([vars(row("one")), vars(row("two"))]), encoding="utf-8")
    assert run_faults(tmp_path, faults=kinds) == [row("one"), row("two")]


def test_a_kind_that_lost_samples_is_run_again(tmp_path: Path) -> None:
    path = tmp_path / RESULTS
    path.write_text(json.dumps([vars(row("one", lost=3))]), encoding="utf-8")
    with pytest.raises(RunError, match="not every sample was kept exactly once: one"):
        run_faults(tmp_path, faults=[Fault("one", never, 1)])
    assert read_rows(path) == [row("one", lost=3)]


def test_the_table_has_a_line_for_each_row() -> None:
    lines = table([row("one"), row("two")])
    assert len(lines) == 4 and lines[2].startswith("| one | processes | 1 | 4 | 10 | 0 | 0 | 2 |")


def test_the_page_has_the_table_of_the_results() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert with_table(text) == text


# The count can fail


def careless(job: ServerJob) -> None:
    """A server that takes every reply to have arrived, whatever became of it."""
    from dataclasses import replace

    from strategies import QuantizedDataReplay

    told = QuantizedDataReplay.request_to

    def request_to(self, node_id, request):  # type: ignore[no-untyped-def]
        return replace(told(self, node_id, request), acknowledged=None)

    QuantizedDataReplay.request_to = request_to  # type: ignore[method-assign]
    run_serverapp(job)


def counted_after(
    root: Path, kind: str, restart: dict[str, bool] | None = None, **options: object
) -> tuple[int, int]:
    rng = np.random.default_rng(0)
    federation = Federation(root, rng, Size(2, 18, 12), {"identity-bytes": 0})
    federation.serverapp = options.get("serverapp", run_serverapp)  # type: ignore[assignment]
    with running(federation):
        befalling([kind], (0.4, 0.6), restart)(federation, 2)
        federation.book()
    assert federation.injected == 2
    counted = federation.count()
    return counted.lost, counted.doubled


@pytest.mark.slow
def test_a_server_that_believes_everything_arrived_loses_samples(tmp_path: Path) -> None:
    lost, doubled = counted_after(tmp_path, supernode.TRUNCATE, serverapp=careless)
    assert lost == 2 * 6 and doubled == 0


@pytest.mark.slow
def test_without_identity_a_device_that_forgets_doubles_samples(tmp_path: Path) -> None:
    lost, doubled = counted_after(tmp_path, supernode.POWER_OFF_UNSENT, {"state": False})
    assert lost == 0 and doubled > 0


# The command


@pytest.mark.slow
@pytest.mark.deployment
@pytest.mark.timeout(1200)  # three minutes on a machine that is idle
def test_the_short_form_loses_and_doubles_nothing(tmp_path: Path) -> None:
    assert main(["faults", "--quick", "--out", str(tmp_path)]) == 0
    rows = read_rows(tmp_path / RESULTS)
    assert [r.fault for r in rows] == [fault.name for fault in FAULTS if fault.quick]
    assert all(r.is_exact and r.samples for r in rows)
    assert {r.engine for r in rows} == {PROCESSES, FLOWER}
    assert sum(r.server_kills for r in rows) >= 5 and sum(r.client_kills for r in rows) >= 5


def test_an_unknown_kind_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["faults", "--only", "earthquake"]) == 2
    assert "'earthquake' is no kind of fault" in capsys.readouterr().err
