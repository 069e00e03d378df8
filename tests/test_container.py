"""The container of docs/deployment.md, built and started beside two other devices.

Needs podman. The image that it builds on comes from its registry, or, where that is out of reach,
is made with debootstrap.
"""

import os
import re
import shutil
import ssl
from pathlib import Path

import pytest
from deployment_walk import (
    CONTAINER,
    REGISTER,
    RESUME,
    RUN,
    SUPERNODE,
    Walk,
    device,
    start_with_keys,
    walk,
    with_config,
    write_photos,
)
from doc_pages import ROOT

from sim.launcher import COMPLETED

pytestmark = [pytest.mark.slow, pytest.mark.deployment, pytest.mark.timeout(900)]

CONTAINERFILE = ROOT / "docs" / "deployment" / "Containerfile"
# Of Debian, with the same Python as the image that is asked for.
RELEASE = "trixie"
TRUSTED = "/etc/ssl/certs/ca-certificates.crt"
USER = 10001
IMAGES = 'dataset=\\"imagefolder\\" image-size=16 data-dir=\\"/srv/photos\\"'
SHORT = f"samples-per-round=2 server-steps=5 {IMAGES}"


def test_the_page_says_that_it_is_run_here() -> None:
    assert Path(__file__).name in CONTAINER.comment


@pytest.mark.skipif(shutil.which("podman") is None, reason="podman is not installed")
def test_a_container_is_a_device() -> None:
    with walk() as here:
        isolate(here)
        try:
            follow(here)
        finally:
            here.run("podman rm --all --force --volumes", here.folder)
            here.run("podman system reset --force", here.folder)


def follow(here: Walk) -> None:
    have_base_image(here)
    build, run_container = CONTAINER.lines
    here.run(build, ROOT)
    write_photos(here)
    start_with_keys(here)
    here.run(*REGISTER.lines, here.folder)
    os.chown(here.etc / "device-0", USER, USER)  # as the page says

    first_container = here.run(run_container, here.etc).strip()
    for number in (1, 2):
        [supernode] = SUPERNODE.lines
        here.start_node(device(supernode, number))
    run, ls = RUN.lines
    first = here.result(here.run(with_config(run, f"num-rounds=1 {SHORT}"), ROOT))
    assert here.statuses(ls) == [COMPLETED], told(here, first_container)
    assert (first["clients"], first["failures"]) == (3, {}), told(here, first_container)
    assert first["samples_sent"] == 3 * 2

    # Another container, of the same volume, goes on where the first one was stopped.
    here.run(f"podman rm --force {first_container}", here.folder)
    second_container = here.run(run_container, here.etc).strip()
    assert second_container != first_container
    here.stands_for["/var/lib/flower-superlink/runs/first"] = first["folder"]
    [resume] = RESUME.lines
    resumed = here.result(here.run(with_config(resume, f"num-rounds=2 {SHORT}"), ROOT))
    assert here.statuses(ls) == [COMPLETED] * 2, told(here, second_container)
    assert (resumed["clients"], resumed["failures"]) == (3, {}), told(here, second_container)
    assert resumed["samples_sent"] == 3 * 4


def told(here: Walk, container: str) -> str:
    return here.run(f"podman logs {container}", here.folder) + here.told()


def isolate(here: Walk) -> None:
    """Have an engine that shares no image, volume or network with others of the user."""
    here.env["PATH"] += f"{os.pathsep}/usr/sbin{os.pathsep}/sbin"  # where Debian has debootstrap
    storage = here.folder / "containers"
    settings = {
        "CONTAINERS_STORAGE_CONF": (
            f'[storage]\ndriver = "overlay"\ngraphroot = "{storage}"\n'
            f'runroot = "{here.folder / "run"}"\n'
        ),
        # The server is on this machine's own loopback. The limits are below those of any machine,
        # which only some users may raise.
        "CONTAINERS_CONF": (
            '[containers]\nnetns = "host"\n'
            'default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]\n'
            "[engine]\n"
            + ('runtime = "runc"\n' if shutil.which("runc", path=here.env["PATH"]) else "")
        ),
    }
    for name, text in settings.items():
        file = here.folder / f"{name.lower()}.toml"
        file.write_text(text)
        here.env[name] = str(file)


def have_base_image(here: Walk) -> None:
    """Have the image that the Containerfile names, and see that it runs; skip if that cannot be."""
    [image] = re.findall(r"^FROM (\S+)$", CONTAINERFILE.read_text(), re.M)
    pulled = here.start(f"podman pull --quiet {image}", here.folder)
    if pulled.process.wait(timeout=300):
        if shutil.which("debootstrap", path=here.env["PATH"]) is None or os.geteuid():
            pytest.skip(f"neither the registry is in reach nor debootstrap: {pulled.told()}")
        root = here.folder / "base"
        packages = "python3-pip,ca-certificates"
        line = f"debootstrap --variant=minbase --include={packages} {RELEASE} {root}"
        made = here.start(line, here.folder)
        if made.process.wait(timeout=500):
            pytest.skip(f"neither the registry nor a mirror of Debian is in reach: {made.told()}")
        # Whom this machine trusts.
        trusted = ssl.get_default_verify_paths().cafile
        if trusted:
            shutil.copyfile(trusted, f"{root}{TRUSTED}")
        settings = "".join(
            f" --change 'ENV {name}={value}'"
            for name, value in {"PIP_BREAK_SYSTEM_PACKAGES": "1", "PIP_CERT": TRUSTED}.items()
        )
        here.run(f"tar -C {root} -c . | podman import{settings} - {image}", here.folder)
        shutil.rmtree(root)
    tried = here.start(f"podman run --rm {image} true", here.folder)
    if tried.process.wait(timeout=60):
        pytest.skip(f"containers do not run on this machine: {tried.told()}")
