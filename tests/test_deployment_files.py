"""The files of docs/deployment: units that systemd accepts; options, paths, packages that exist."""

import configparser
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from test_docs import check_external

from sim.keys import KeyFolder, make_keys

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "deployment"
SUPERLINK, SUPERNODE = FOLDER / "flower-superlink.service", FOLDER / "flower-supernode@.service"
PREFIX = "/opt/flower"  # of the environment, in the units


class Unit(configparser.RawConfigParser):
    """A unit file: keys may be repeated, lines may be continued."""

    def __init__(self, path: Path) -> None:
        super().__init__(strict=False, delimiters="=", interpolation=None)
        self.optionxform = str  # type: ignore[assignment,method-assign]
        self.path = path
        self.read_string(path.read_text().replace("\\\n", " "))

    def all(self, key: str) -> list[str]:
        return re.findall(rf"^{key}=(.*)$", self.path.read_text(), re.M)

    def environment(self) -> dict[str, str]:
        words = [word for line in self.all("Environment") for word in shlex.split(line)]
        return dict(word.split("=", 1) for word in words)

    def command(self) -> list[str]:
        return shlex.split(self["Service"]["ExecStart"])


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd")
@pytest.mark.parametrize("unit", [SUPERLINK, SUPERNODE], ids=lambda unit: unit.name)
def test_systemd_accepts_a_unit_and_finds_it_confined(unit: Path, tmp_path: Path) -> None:
    file = tmp_path / unit.name.replace("@.", "@7.")
    file.write_text(unit.read_text().replace(PREFIX, sys.prefix))
    for command in ("verify", "security --offline=true --threshold=20 --no-pager"):
        done = subprocess.run(
            ["systemd-analyze", *command.split(), str(file)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        if command == "verify":
            assert not done.stderr


@pytest.mark.parametrize("file", [SUPERLINK, SUPERNODE], ids=lambda file: file.name)
def test_a_unit_keeps_its_state_and_reads_the_files_that_keys_makes(
    file: Path, tmp_path: Path
) -> None:
    unit = Unit(file)
    state = f"%S/{unit['Service']['StateDirectory']}"
    environment = unit.environment()
    assert unit["Service"]["WorkingDirectory"] == state
    assert environment["FLWR_HOME"].startswith(f"{state}/")
    assert environment["PATH"].startswith(f"{PREFIX}/bin:")
    if file == SUPERNODE:
        assert environment["XDG_STATE_HOME"] == state
    keys = KeyFolder(tmp_path)
    make_keys(keys, (), 1)
    made = {path.name for path in tmp_path.rglob("*")}
    for credential in unit.all("LoadCredential"):
        name, path = credential.split(":")
        assert Path(path.replace("%i", "0")).name in made
        assert f"${{CREDENTIALS_DIRECTORY}}/{name}" in unit.command()


@pytest.mark.slow
@pytest.mark.parametrize("file", [SUPERLINK, SUPERNODE], ids=lambda file: file.name)
def test_the_options_of_a_unit_exist(file: Path) -> None:
    program, *options = Unit(file).command()
    check_external([Path(program).name, *(w for w in options if "$" not in w)])


def test_the_device_s_settings_are_those_that_its_unit_reads() -> None:
    text = (FOLDER / "supernode.env").read_text()
    settings = dict(re.findall(r"^(?:# )?([A-Z_]+)=(.*)$", text, re.M))
    read = set(re.findall(r"\$\{(\w+)}", " ".join(Unit(SUPERNODE).command())))
    assert set(settings) == read - {"CREDENTIALS_DIRECTORY"}
    check_external(["flower-supernode", "--node-config", *shlex.split(settings["NODE_CONFIG"])])


def test_the_container_holds_the_packages_of_a_device() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["edge"]]
    text = (FOLDER / "Containerfile").read_text().replace("\\\n", " ")
    [install] = re.findall(r"pip install --no-cache-dir (.*?) +&&", text)
    assert {Requirement(word) for word in shlex.split(install)} == set(map(Requirement, needed))
    [entry] = re.findall(r"ENTRYPOINT \[(.*)]", text)
    assert re.findall(r'"([^"]*)"', entry)[0] == "flower-supernode"


def test_devices_reach_their_part_of_the_server_alone() -> None:
    text = (FOLDER / "nginx.conf").read_text()
    assert re.findall(r"location (\S+) \{\n\s+(\w+)", text) == [
        ("/v1/fleet/", "proxy_pass"),
        ("/", "return"),
    ]
