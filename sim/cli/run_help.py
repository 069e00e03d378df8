"""What ``run --help`` adds to the options: examples, and a table of the run config."""

import json

import click
from rich import box
from rich.console import Console
from rich.table import Table
from typer.core import TyperCommand

from sim.run_config import ConfigValue

EXAMPLES = {
    "ten clients on MNIST digits": "",
    "an uneven split": "--clients 50 --config partition=dirichlet num-rounds=12",
    "another data set and model": "--config dataset=cifar10 data-dir=PATH model=resnet18",
    "a file's settings, one changed": "--run-config FILE.toml --config seed=1 --out runs/first",
}


class RunCommand(TyperCommand):
    """A command whose help ends with examples and the run config."""

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Print the options, then the examples and the keys."""
        super().format_help(ctx, formatter)
        console = Console(markup=False, highlight=False, emoji=False)
        console.print("Examples", style="bold")
        for meaning, arguments in EXAMPLES.items():
            console.print(f"  # {meaning}", style="dim")
            console.print(f"  {ctx.command_path} {arguments}".rstrip(), soft_wrap=True)
        console.print("\nKeys of --config", style="bold")
        console.print(key_table())


def key_table() -> Table:
    """Return a table of all run-config keys with default, meaning and legal values."""
    # Here because it takes a third of a second, which only the help needs.
    from fl_app.config import described_keys

    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    table.add_column("key", no_wrap=True)
    table.add_column("default", no_wrap=True)
    table.add_column("meaning", overflow="fold")
    table.add_column("legal", overflow="fold")
    group = ""
    for described in described_keys():
        if described.group != group:
            group = described.group
            table.add_section()
            table.add_row(group, style="bold")
        table.add_row(described.key, _typed(described.default), described.doc, described.legal)
    return table


def _typed(default: ConfigValue) -> str:
    """Return a default as it is typed after ``KEY=``."""
    return default or '""' if isinstance(default, str) else json.dumps(default)
