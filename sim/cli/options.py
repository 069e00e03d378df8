"""Options that several commands have, and how they are read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import click
import typer

from sim.run_config import RunConfigError

APP = Path(__file__).resolve().parents[2]
RESULTS = APP / "sim" / "results"

# Flags that take all arguments up to the next flag.
MULTIPLE = ("--config", "--fit", "--grid", "--only", "--importances", "--host", "--sizes")


def repeat_flags(arguments: Sequence[str], flags: Sequence[str] = MULTIPLE) -> list[str]:
    """Repeat a flag before each of its values, as click has no options of any number of values.

    Parameters
    ----------
    arguments : sequence of str
        The command line; what follows a ``--`` is left alone.
    flags : sequence of str
        Flags that take several values.

    Returns
    -------
    list of str
        ``--only A B`` has become ``--only A --only B``.

    Raises
    ------
    RunConfigError
        If a flag has no value: click would take the next flag for it.
    """
    repeated: list[str] = []
    rest = list(arguments)
    while rest and rest[0] != "--":
        argument = rest.pop(0)
        if argument not in flags:
            repeated.append(argument)
            continue
        if not rest or rest[0].startswith("-"):
            raise RunConfigError(f"{argument} needs at least one value")
        while rest and not rest[0].startswith("-"):
            repeated += [argument, rest.pop(0)]
    return repeated + rest


def absolute(text: str | Path) -> Path:
    """Return the absolute path that a user means."""
    return Path(text).expanduser().absolute()


def folder(text: str | Path) -> Path:
    """Return the absolute path of a folder, which need not be there yet.

    Raises
    ------
    click.BadParameter
        If it, or a folder that it would be in, is a file.
    """
    path = absolute(text)
    for place in (path, *path.parents):
        if place.is_file():
            raise click.BadParameter(f"{place} is a file; name a folder.")
    return path


def _folder(help_text: str, shown: str | bool = False, *, hidden: bool = False) -> object:
    return typer.Option(
        parser=folder, metavar="DIR", help=help_text, show_default=shown, hidden=hidden
    )


Config: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE ...",
        help="Run-config entries; they go before --run-config's (`run --help` lists the keys).",
    ),
]
ConfigFile: TypeAlias = Annotated[
    Path | None, typer.Option(metavar="FILE.toml", help="More of them in a file.")
]
Clients: TypeAlias = Annotated[int, typer.Option(min=1, metavar="N", help="Simulated clients.")]
Engine: TypeAlias = Annotated[
    Literal["flower", "direct"],
    typer.Option(
        help="What runs the clients: Flower's simulation engine, or a pool of processes with the "
        "same app and messages, without Ray, for thousands of clients."
    ),
]
Processes: TypeAlias = Annotated[
    int,
    typer.Option(
        min=0, metavar="N", help="Of --engine direct.", show_default="as many as there are cores"
    ),
]
DigitsOrCifar10: TypeAlias = Annotated[
    str, typer.Option(metavar="DIR", help="Folder of CIFAR-10.", show_default="digits")
]
AppFolder: TypeAlias = Annotated[Path, _folder("The Flower app.", "this one")]
OtherApp: TypeAlias = Annotated[Path, _folder("The Flower app.", hidden=True)]
RunFolder: TypeAlias = Annotated[
    str,
    typer.Option(metavar="DIR", help="Folder of the results.", show_default="runs/<time>-..."),
]
Overwrite: TypeAlias = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace the results in DIR, which are refused otherwise."),
]
BankFile: TypeAlias = Annotated[
    Path, typer.Argument(parser=absolute, metavar="PATH", help="The bank's file.")
]
Resume: TypeAlias = Annotated[
    Path | None,
    _folder(
        "Go on with the run in DIR, which was stopped or killed, with its config; --config may "
        "raise num-rounds."
    ),
]
Tensorboard: TypeAlias = Annotated[
    bool,
    typer.Option("--tensorboard", help="Write each round for TensorBoard, into DIR/tensorboard."),
]
ResultsFolder: TypeAlias = Annotated[Path, _folder("Folder of the results.", "sim/results")]
Quick: TypeAlias = Annotated[bool, typer.Option("--quick", help="Small and short: a smoke test.")]
