"""The documentation: its commands run, its links lead somewhere, its tables are those measured."""

import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from doc_commands import commands_of, is_external, is_ours
from doc_pages import BLOCKS, PAGES, ROOT, Block, anchors_of, outside_fences

from fl_app.config import RunConfig
from sim import codec_constants, codec_network
from sim.cli.commands import cli
from sim.cli.options import APP, repeat_flags
from sim.compare.presets import PRESETS
from sim.importance import IMPORTANCES, to_config
from sim.keys import KeyFolder, connection_block
from sim.run_config import make_run_config
from sim.scout import contenders

SHELL = [block for block in BLOCKS if block.language in ("sh", "console")]
NODE_KEYS = {"partition-id", "num-partitions", "data-dir", "state-dir"}
PYTHON = [block for block in BLOCKS if block.language == "python"]


def by_name(block: Block) -> str:
    return block.name


# What is done with each kind of block


LISTED = {
    "sh": "commands are parsed, and run unless marked",
    "console": "commands are parsed, and run unless marked",
    "python": "runs unless marked",
    "toml": "is Flower's configuration",
    "diff": "is applied to three projects, by tests/test_hosts.py",
    "": "is a figure, or what a command prints",
}
# Programs that are not here, or that are the shell's: their blocks do not run, and say why.
FOREIGN = {"podman", "python3", ".", "pre-commit", "ruff", "mypy", "mkdocs", "pytest"}
CODE = re.compile(r"\s*(\$ |>>> |(python|pip|flwr|flower-\w+|import|from|def|class|podman)\b)")


@pytest.mark.parametrize("block", BLOCKS, ids=by_name)
def test_every_block_is_of_a_kind_that_is_tested(block: Block) -> None:
    assert block.language in LISTED, f"say in LISTED what is to be done with {block.language!r}"
    if block.language == "diff":
        assert block.comment == "plug-in diff"
    if block.language == "":
        hidden = [line for line in block.text.splitlines() if CODE.match(line)]
        assert not hidden, f"give the block a language, so that this is tested: {hidden}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_block_is_written_in_a_way_that_is_overlooked(page: Path) -> None:
    text = outside_fences(page)
    assert not re.findall(r"^ *(?:```|~~~).*", text, re.M), "fences stand at the margin"
    assert not re.findall(r"\n\n(?: {4}|\t)\S.*", text), "code stands in fences"


@pytest.mark.parametrize("block", [b for b in BLOCKS if not b.runs], ids=by_name)
def test_what_is_said_to_run_elsewhere_does(block: Block) -> None:
    assert block.language in ("sh", "console", "python"), "nothing of this kind is run anyway"
    for name in re.findall(r"tests/\w+\.py", block.comment):
        assert (ROOT / name).is_file()


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "toml"], ids=by_name)
def test_a_block_of_configuration_is_what_our_keys_write(block: Block) -> None:
    [(name, entry)] = tomllib.loads(block.text)["superlink"].items()
    [ours] = tomllib.loads(connection_block(name, "host", 1, KeyFolder(Path("keys")))).values()
    assert entry.keys() == ours[name].keys()


# Commands


COMMANDS = [
    pytest.param(words, id=f"{block.name} {' '.join(words[:4])}")
    for block in SHELL
    for words in commands_of(block)
]
OURS = [param for param in COMMANDS if is_ours(param.values[0])]
EXTERNAL = [param for param in COMMANDS if is_external(param.values[0])]


def test_blocks_are_found() -> None:
    assert {"README.md", "experiments.md", "deployment.md"} <= {b.page.name for b in SHELL}
    assert PYTHON and len(OURS) > 10 and len(EXTERNAL) > 8
    first_words = {param.values[0][0] for param in COMMANDS}
    assert first_words >= {"python", "pip", "flwr", "flower-superlink", "flower-supernode"}


@pytest.mark.parametrize("block", SHELL, ids=by_name)
def test_every_command_is_one_that_is_checked(block: Block) -> None:
    commands = commands_of(block)
    assert commands
    foreign = {words[0] for words in commands if not (is_ours(words) or is_external(words))}
    assert foreign <= FOREIGN, f"let the test know {foreign - FOREIGN}"
    assert not (foreign and block.runs), f"mark {block.name} `not run: reason`"


@pytest.mark.parametrize("words", OURS)
def test_a_command_of_ours_is_legal(words: list[str]) -> None:
    check_ours(words[2].removeprefix("sim").removeprefix("."), words[3:])


@pytest.mark.slow
@pytest.mark.parametrize("words", EXTERNAL)
def test_options_of_other_programs_exist(words: list[str]) -> None:
    check_external(words)


def check_ours(module: str, arguments: list[str]) -> None:
    """Parse a command of ours: options exist, and keys and values of the run config are legal."""
    if module == "codec_constants":
        codec_constants.make_parser().parse_args(arguments)
        return
    if module == "codec_network":
        codec_network.make_parser().parse_args(arguments)
        return
    if module:
        assert (ROOT / "sim" / f"{module}.py").is_file() and not arguments
        return
    name, *options = arguments
    group = typer.main.get_command(cli)
    command = group.get_command(None, name)  # type: ignore[attr-defined,arg-type]
    assert command is not None, f"no command {name}"
    while isinstance(command, click.Group) and options != ["--help"]:
        name, *options = options
        command = command.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None, f"no command {name}"
    if "--help" in options:
        return
    values = command.make_context(name, repeat_flags(options)).params
    if "config" in values:
        file = values.get("run_config")
        config = make_run_config(APP, values["config"] or (), file and ROOT / file)
        if name == "importance":
            to_config(values["mode"], config)
        else:
            RunConfig.from_run_config(config)
    if name == "importance":
        assert set(values["importances"] or ()) <= set(IMPORTANCES)
    if name == "scout":
        assert set(values["only"] or ()) <= set(contenders())
    if name == "compare":
        methods = {method.name for method in PRESETS[values["preset"]].methods}
        assert set(values["only"] or ()) <= methods


def check_external(words: list[str]) -> None:
    """Check options of pip's and Flower's programs against their help, and the values we know."""
    if words[0] == "torchrun":  # what follows is a command of ours
        place = words.index("-m")
        check_ours("", words[place + 2 :])
        words = words[:place]
    length = 1
    if words[0] in ("flwr", "pip"):
        length = 3 if words[1] in ("supernode", "federation", "config") else 2
    told = help_of(tuple(words[:length]))
    for word in words[length:]:
        if word.startswith("-"):
            option = word.split("=")[0]
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", told), f"no {option}"
    for option, value in pairwise(words):
        if option == "--run-config":
            RunConfig.from_run_config(key_values(value))
        if option == "--node-config":
            assert set(key_values(value)) <= NODE_KEYS
        if option == "--federation-config":
            assert key_values(value)


@cache
def help_of(words: tuple[str, ...]) -> str:
    program = Path(sys.executable).with_name(words[0])
    done = subprocess.run(
        [str(program), *words[1:], "--help"],
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)


def key_values(text: str) -> dict[str, Any]:
    """Read ``a=1 b="x"``, as Flower does."""
    pairs = re.findall(r"""([\w-]+)=("[^"]*"|\S+)""", text)
    assert " ".join(f"{key}={value}" for key, value in pairs) == text
    return tomllib.loads("\n".join(f"{key} = {value}" for key, value in pairs))


# Python


@pytest.mark.parametrize("page", list(dict.fromkeys(b.page for b in PYTHON)), ids=lambda p: p.name)
def test_the_python_blocks_of_a_page_run_one_after_the_other(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in PYTHON:
        if block.page == page and block.runs:
            lines = "\n" * block.line + block.text  # so that a traceback names the page's line
            exec(compile(lines, str(page), "exec"), names)


# Links


LINKS = [
    pytest.param(page, target, id=f"{page.name} {target}")
    for page in PAGES
    for target in re.findall(r"]\(([^)\s]+)\)", outside_fences(page))
    if not re.match(r"\w+:", target)
]


@pytest.mark.parametrize(("page", "target"), LINKS)
def test_a_relative_link_leads_somewhere(page: Path, target: str) -> None:
    path, _, anchor = target.partition("#")
    linked = (page.parent / path).resolve() if path else page
    assert linked.is_relative_to(ROOT) and linked.exists(), f"no {path}"
    if anchor:
        assert anchor in anchors_of(linked)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_link_elsewhere_is_whole(page: Path) -> None:
    """Whether somebody answers there is not for a test without a network."""
    for address in re.findall(r"]\((\w+:[^)]*)\)", outside_fences(page)):
        assert re.fullmatch(r"https://[\w.-]+\.\w+(/[\w./#-]*)?", address), address


# Quoted results


QUOTED = [
    pytest.param(name, rows, id=f"{page.name} {name}")
    for page in PAGES
    for name, rows in re.findall(
        r"<!-- rows of (\S+) -->\n(.*?)<!-- end of rows -->", page.read_text(encoding="utf-8"), re.S
    )
]


def test_results_are_quoted() -> None:
    assert QUOTED


@pytest.mark.parametrize(("name", "rows"), QUOTED)
def test_quoted_rows_are_those_of_the_table_in_their_order(name: str, rows: str) -> None:
    path = ROOT / "sim" / "results" / f"{name}.md"
    table = iter(path.read_text(encoding="utf-8").splitlines())
    for line in rows.splitlines():
        assert line in table, f"not a line of {path.name}, or not in its order: {line}"


def test_points_of_the_frontier_are_those_of_the_results() -> None:
    text = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    [(data, table)] = re.findall(r"<!-- points of the frontier: (\S+) -->\n((?:\|.*\n)+)", text)
    measured = results.partition(f"<!-- frontier: {data} -->\n")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in measured.splitlines()]
    found = [[uplink, images, rate, value] for _, rate, _, images, _, uplink, value, *_ in rows]
    for row in table.splitlines()[2:]:
        uplink, images, step, value = (cell.strip() for cell in row.split("|")[1:-1])
        assert [uplink, images, f"step {step}", value] in found, row
