"""The commands of the documentation run, as they stand there or smaller."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from doc_commands import MEASURED, Change, environment, furnish, is_ours
from doc_pages import BLOCKS, ROOT, Block

SHELL = [block for block in BLOCKS if block.language in ("sh", "console")]
HERE = Path(sys.executable)


def by_name(block: Block) -> str:
    return block.name


def block_of(text: str, comment: str) -> Block:
    return Block(Path("page.md"), 1, "sh", text, comment)


@pytest.mark.parametrize("block", [b for b in SHELL if not b.runs], ids=by_name)
def test_what_does_not_run_is_not_made_smaller(block: Block) -> None:
    assert Change.of(block) == Change({}, {})


def test_a_change_replaces_and_adds() -> None:
    block = block_of(
        "python -m sim a --seeds 3 && python -m sim b\npip install x\n",
        "smaller: --seeds 3 -> --seeds 1; +2 --quick; + --out 'a b'",
    )
    assert Change.of(block).commands(block) == [
        ["python", "-m", "sim", "a", "--seeds", "1", "--out", "a b"],
        ["python", "-m", "sim", "b", "--quick", "--out", "a b"],
        ["pip", "install", "x", "--out", "a b"],
    ]


@pytest.mark.parametrize("comment", ["smaller: x -> y", "smaller: +2 --quick"])
def test_a_change_of_what_is_not_there_fails(comment: str) -> None:
    block = block_of("python -m sim a\n", comment)
    with pytest.raises(AssertionError, match=r"page\.md:1 has no"):
        Change.of(block).commands(block)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("block", [b for b in SHELL if b.runs], ids=by_name)
def test_a_block_of_commands_runs(block: Block, tmp_path: Path) -> None:
    commands = Change.of(block).commands(block)
    furnish(tmp_path, commands)
    before = kept()
    for words in commands:
        command, folder = executed(words, tmp_path)
        done = subprocess.run(
            command, cwd=folder, env=environment(), capture_output=True, text=True
        )
        assert done.returncode == 0, (
            f"{shlex.join(words)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    assert kept() == before, f"give the command an --out, such as {MEASURED}"


def executed(words: list[str], tmp_path: Path) -> tuple[list[str], Path]:
    """What runs in place of a documented command, and where."""
    if words[0] == "pip":  # as far as it goes without a network and without changing anything
        assert words[1] == "install"
        dry = ["--dry-run", "--no-deps", "--no-build-isolation"]
        return [sys.executable, "-m", "pip", "install", *dry, *words[2:]], ROOT
    if words[0] == "torchrun":
        return [str(HERE.with_name("torchrun")), *words[1:]], tmp_path
    assert is_ours(words), f"{words[0]} starts what does not end: mark the block `not run: reason`"
    return [sys.executable, *words[1:]], tmp_path


def kept() -> dict[str, int]:
    """When the files of the repository that commands write were written."""
    places = [ROOT / "sim" / "results", ROOT / "docs", ROOT / "codec" / "samples" / "block_dct"]
    paths = [path for place in places for path in place.glob("*.*")] + [ROOT / "pyproject.toml"]
    return {str(path.relative_to(ROOT)): path.stat().st_mtime_ns for path in paths}
