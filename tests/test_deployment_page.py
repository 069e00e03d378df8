"""What docs/deployment.md says to type works: server, devices and runs, with keys and without.

The lines are given to a shell as they stand on the page, but for `stands_for` and what is appended.
"""

import re
from pathlib import Path

import pytest
from deployment_walk import (
    CONNECTION,
    KEYS,
    OWN_DATA,
    PORT,
    REGISTER,
    RESUME,
    RUN,
    RUN_OF_KEYS,
    SHORT,
    SIMULATION,
    SUPERLINK,
    SUPERNODE,
    SUPERNODE_OF_TUTORIAL,
    WITHOUT_KEYS,
    device,
    start_with_keys,
    walk,
    with_config,
    write_photos,
)
from doc_pages import BLOCKS, ROOT
from started import started_with

from sim.launcher import COMPLETED

pytestmark = [pytest.mark.slow, pytest.mark.deployment, pytest.mark.timeout(600)]

HERE = [block for block in BLOCKS if Path(__file__).name in block.comment]


def test_what_is_said_to_run_here_does() -> None:
    known = [SUPERLINK, REGISTER, SUPERNODE, SUPERNODE_OF_TUTORIAL, RUN, RUN_OF_KEYS, RESUME]
    known += [WITHOUT_KEYS, OWN_DATA, SIMULATION]
    assert {b.name for b in HERE} == {b.name for b in known}


def test_with_keys() -> None:
    with walk() as here:
        [supernode], [tutorial] = SUPERNODE.lines, SUPERNODE_OF_TUTORIAL.lines
        start_with_keys(here)

        # One as the text says, which is known when all are registered.
        [alone] = re.findall(r"`(flwr supernode register .*)`", KEYS.page.read_text())
        here.run(alone, here.folder)
        told = here.run(*REGISTER.lines, here.folder)
        assert "registered with fleet: 2 devices, 1 known before" in told

        here.start_node(supernode)
        here.start_node(device(supernode, 1))
        here.start_node(device(tutorial, 2))

        run, ls = RUN.lines
        first = here.result(here.run(with_config(run, SHORT), ROOT))
        assert here.statuses(ls) == [COMPLETED], here.told()
        assert (first["clients"], first["rounds"], first["failures"]) == (3, 1, {}), here.told()

        here.stands_for["/var/lib/flower-superlink/runs/first"] = first["folder"]
        [resume] = RESUME.lines
        more = SHORT.replace("num-rounds=1", "num-rounds=2")
        resumed = here.result(here.run(with_config(resume, more), ROOT))
        assert here.statuses(ls) == [COMPLETED] * 2, here.told()
        assert (resumed["folder"], resumed["rounds"]) == (first["folder"], 2), here.told()

        own = here.result(here.run(*RUN_OF_KEYS.lines, ROOT))
        assert here.statuses(ls) == [COMPLETED] * 3, here.told()
        assert own["folder"] != first["folder"] and own["rounds"] == 2, here.told()


def test_without_keys() -> None:
    with walk() as here:
        write_photos(here)
        superlink, supernode = WITHOUT_KEYS.lines
        here.start_server(f"{superlink} {PORT} {here.port}")
        text = re.sub("root-certificates = .*", "insecure = true", CONNECTION.text)
        (here.home / "config.toml").write_text(here.here(text))
        for number in (0, 1):
            here.start_node(device(supernode, number))
        here.start_node(*OWN_DATA.lines)

        run, ls = RUN.lines
        images = r"dataset=\"imagefolder\" image-size=16 data-dir=\"/srv/photos\""
        result = here.result(here.run(with_config(run, f"{SHORT} {images}"), ROOT))
        assert here.statuses(ls) == [COMPLETED], here.told()
        assert (result["clients"], result["failures"]) == (3, {}), here.told()
        # Two have a half each, and the one that owns its folder all of it.
        assert result["samples_sent"] == 6 + 6 + 12


def test_a_simulation_and_what_it_leaves() -> None:
    with walk() as here:
        run, ls = SIMULATION.lines
        result = here.result(here.run(with_config(run, SHORT), ROOT))
        assert ls.endswith(f'# "status": "{COMPLETED}"')
        assert here.statuses(ls) == [COMPLETED], here.told()
        assert result["folder"] == f"{here.folder}/runs/first"
        assert result["clients"] == 10 and result["failures"] == {}, here.told()
        assert any("flower-superlink" in words for words in started_with(here.mark).values())
