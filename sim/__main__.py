"""Command line: ``python -m sim run``, ``central``, ``compare``, ``theory`` and more."""

import os
import signal
import sys
from collections.abc import Sequence

import click
import typer

from sim.cli.commands import cli
from sim.cli.options import repeat_flags
from sim.launcher import RunError
from sim.run_config import RunConfigError
from sim.superlink import interrupt

INTERRUPTED = 130

_PROGRAM = "python -m sim"
_OWN_PACKAGES = ("codec.", "clients.", "strategies.", "fl_app.", "sim.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; return the exit code: 0, 1 (run failed), 2 (bad arguments) or 130."""
    # Waiting threads shall not spin: server, simulated clients and Ray share the CPUs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGHUP, interrupt)
    try:
        return _invoke(sys.argv[1:] if arguments is None else arguments)
    except click.UsageError as error:
        told = " ".join(error.format_message().split())  # some have several lines
        program = error.ctx.command_path if error.ctx else _PROGRAM
        return _failed(f"{told.removesuffix('.')}. See {program} --help", 2)
    except RunConfigError as error:
        return _failed(str(error), 2)
    except RunError as error:
        return _failed(str(error), 1)
    except (RuntimeError, ValueError) as error:
        if not type(error).__module__.startswith(_OWN_PACKAGES):
            raise  # a bug, whose traceback is wanted
        return _failed(str(error), 1)
    except KeyboardInterrupt:
        print("interrupted; everything that was started is stopped", file=sys.stderr)
        return INTERRUPTED


def _invoke(arguments: Sequence[str]) -> int:
    code = typer.main.get_command(cli).main(
        repeat_flags(arguments), prog_name=_PROGRAM, standalone_mode=False
    )
    if code == INTERRUPTED:  # typer has caught Ctrl-C
        raise KeyboardInterrupt
    return int(code or 0)


def _failed(message: str, exit_code: int) -> int:
    print("error:", *message.splitlines(), file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
