"""Commands of the documentation, and how tests run them: smaller, on stand-ins for their data."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from doc_pages import ROOT, Block
from PIL import Image

from sim.scale import write_digits

SMALLER = "smaller: "


def commands_of(block: Block) -> list[list[str]]:
    """The commands of a block as words, without comments and environment variables."""
    found = []
    for line in block.lines:
        words = shlex.split(line, comments=True)
        for command in split_at_and(words):
            while command and re.match(r"[A-Z_]+=", command[0]):
                command.pop(0)
            if command:
                found.append(command)
    return found


def split_at_and(words: list[str]) -> Iterator[list[str]]:
    while "&&" in words:
        place = words.index("&&")
        yield words[:place]
        words = words[place + 1 :]
    yield words


def is_ours(words: list[str]) -> bool:
    return bool(re.fullmatch(r"python -m sim(\.\w+)?", " ".join(words[:3])))


def is_external(words: list[str]) -> bool:
    return bool(re.fullmatch(r"pip|flwr|flower-\w+|torchrun", words[0]))


@dataclass(frozen=True)
class Change:
    """What makes the commands of a block smaller.

    Attributes
    ----------
    replaced : mapping of str to str
        Parts of the block's text, each once or more in it.
    added : mapping of int to list of str
        Words behind the command of a number, from 1; 0: behind every command, and after those.
    """

    replaced: Mapping[str, str]
    added: Mapping[int, list[str]]

    @classmethod
    def of(cls, block: Block) -> "Change":
        """Read ``<!-- smaller: OLD -> NEW; +2 WORDS; + WORDS -->``."""
        replaced, added = {}, {}
        told = block.comment.removeprefix(SMALLER) if block.comment.startswith(SMALLER) else ""
        for part in filter(None, told.split("; ")):
            if found := re.fullmatch(r"\+(\d*) (.+)", part):
                added[int(found[1] or 0)] = shlex.split(found[2])
            else:
                old, new = part.split(" -> ")
                replaced[old] = new
        return cls(replaced, added)

    def commands(self, block: Block) -> list[list[str]]:
        text = block.text
        for old, new in self.replaced.items():
            assert old in text, f"{block.name} has no {old!r}"
            text = text.replace(old, new)
        commands = commands_of(replace(block, text=text))
        assert set(self.added) <= set(range(len(commands) + 1)), f"{block.name} has not so many"
        return [
            [*words, *self.added.get(number, []), *self.added.get(0, [])]
            for number, words in enumerate(commands, start=1)
        ]


# What commands name, and a reader has


def write_pictures(folder: Path, side: int, train: int, test: int, classes: int) -> None:
    """Write pictures of smooth colours as ``train/<class>/*`` and ``test/<class>/*``."""
    generator = np.random.default_rng(side)
    for split, number in (("train", train), ("test", test)):
        for label in range(classes):
            place = folder / split / f"class-{label}"
            place.mkdir(parents=True)
            for index in range(number):
                coarse = generator.integers(0, 256, (4, 4, 3), np.uint8)
                coarse[label % 4, :, label % 3] = 255
                picture = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
                picture.save(place / f"{index}.png")


def run_first(place: Path) -> None:
    """Do the tutorial's first run."""
    command = "-m sim run --engine direct --clients 4 --config num-rounds=2 server-steps=20 --out"
    subprocess.run(
        [sys.executable, *command.split(), str(place)],
        env=environment(),
        check=True,
        capture_output=True,
    )


def write_fashion_mnist(folder: Path) -> None:
    """Write digits as its files are written; they are tested on themselves."""
    folder.mkdir(parents=True)
    write_digits(folder, 4000)
    for path in list(folder.glob("train-*")):
        shutil.copy(path, folder / path.name.replace("train", "t10k"))


MEASURED = "measured"  # what a command that would write to sim/results is given in its place
STAND_INS: Mapping[str, Callable[[Path], object]] = {
    "data/cifar10": lambda place: write_pictures(place, 32, 60, 20, 10),
    "data/tiny-imagenet": lambda place: write_pictures(place, 64, 10, 4, 3),
    "data/photographs": lambda place: write_pictures(place, 224, 4, 2, 2),
    "data/leaves": lambda place: write_pictures(place, 80, 10, 4, 3),
    "data/fashion-mnist": write_fashion_mnist,
    "fl_app/presets": lambda place: shutil.copytree(ROOT / "fl_app" / "presets", place),
    "runs/first": run_first,
    "runs/fine": run_first,
    "runs/coarse": run_first,
    MEASURED: lambda place: shutil.copytree(ROOT / "sim" / "results", place),
}


def furnish(folder: Path, commands: list[list[str]]) -> None:
    """Put into a folder what commands name, unless one of them makes it."""
    words = [word for command in commands for word in command]
    made = {words[place + 1] for place, word in enumerate(words) if word == "--out"} - {MEASURED}
    for name, make in STAND_INS.items():
        named = re.compile(rf"(?:^|=){re.escape(name)}(?:$|/)")
        if name not in made and any(map(named.search, words)):
            make(folder / name)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}
