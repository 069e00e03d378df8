"""Command line: ``python -m sim run``, ``central``, ``compare``, ``theory`` and more."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from sim.compare.presets import PRESETS, Preset
from sim.launcher import RunError, launch
from sim.run_config import ConfigValue, RunConfigError, make_run_config, read_defaults
from sim.superlink import KEEP_FREED_MEMORY, interrupt

APP = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; return the exit code: 0, 1 (run failed), 2 (bad arguments) or 130."""
    # Waiting threads shall not spin: server, simulated clients and Ray share the CPUs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGHUP, interrupt)
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], None] = options.command
    try:
        command(options)
    except RunConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; everything that was started is stopped", file=sys.stderr)
        return 130
    return 0


def run(options: argparse.Namespace) -> None:
    """Run the app on simulated clients and print the run folder."""
    config = make_run_config(options.app, options.config, options.run_config)
    effective = read_defaults(options.app) | config
    if "out-dir" not in effective:  # an app of another kind, which writes no run folder
        launch(options.app, config, options.clients, _echo)
        return
    out = options.out or str(effective["out-dir"])
    with _results_folder(out, effective) as folder:
        launch(options.app, config | {"out-dir": str(folder)}, options.clients, _echo)
    print(f"run folder: {folder}")


def central(options: argparse.Namespace) -> None:
    """Compare the app with central training on the original samples."""
    # Here because it imports torch, which the launcher does without.
    from sim.central import beside_central_training

    config = make_run_config(options.app, options.config, options.run_config)
    effective = read_defaults(options.app) | config
    with _results_folder(options.out, effective | {"strategy": "central"}) as folder:
        beside_central_training(
            options.app, config, options.clients, options.seeds, folder, _echo
        )
    print(f"results: {folder}")


def theory(options: argparse.Namespace) -> None:
    """Check the theory's claims on small problems."""
    from sim.theory.report import FULL, QUICK, check_theory

    scale = QUICK if options.quick else FULL
    if options.seeds is not None:
        scale = replace(scale, seeds=options.seeds)
    check_theory(options.out, scale, _echo)
    print(f"results: {options.out}")


def cost(options: argparse.Namespace) -> None:
    """Measure what a round costs the device."""
    from sim.cost import FULL, QUICK, measure_cost

    data_dir = str(_folder(options.data_dir)) if options.data_dir else ""
    measure_cost(
        options.out,
        QUICK if options.quick else FULL,
        data_dir,
        repetitions=3 if options.quick else 15,
        echo=_echo,
    )
    print(f"results: {options.out}")


def importance(options: argparse.Namespace) -> None:
    """Compare importances at half of the samples."""
    from sim.importance import IMPORTANCES, compare_importances, to_config

    overrides = make_run_config(options.app, options.config, options.run_config)
    try:
        config = to_config(options.mode, overrides)
    except ValueError as error:
        raise RunConfigError(str(error)) from error
    names = options.importances or IMPORTANCES
    folder = _folder(options.out) if options.out else APP / "sim" / "results"
    compare_importances(folder, config, options.mode, options.seeds, names, _echo)
    print(f"results: {folder}")


def compare(options: argparse.Namespace) -> None:
    """Run the missing methods of a preset, then write table and figures."""
    from sim.compare.report import report
    from sim.compare.results import read_results
    from sim.compare.runner import compare as run_preset

    preset = PRESETS[options.preset]
    if options.report:
        results = read_results(options.out / f"{preset.name}.jsonl")
    else:
        _check_comparison(preset, options.only, options.data_dir)
        os.environ.update(KEEP_FREED_MEMORY)  # trials and uploads train in processes started here
        results = run_preset(
            preset,
            options.app,
            options.out,
            str(options.data_dir),
            seeds=options.seeds,
            only=options.only,
            jobs=options.jobs,
            echo=_echo,
        )
    if not results.runs:
        raise RunConfigError(f"no results of {preset.name} in {options.out}; leave out --report")
    for line in report(preset, results, options.out):
        _echo(line)
    print(f"results: {options.out}")


def _check_comparison(preset: Preset, only: Sequence[str], data_dir: Path) -> None:
    """Raise `RunConfigError` on an unknown method, or if the data are not there."""
    from fl_app.data import DataError, load

    names = [method.name for method in preset.methods]
    for name in only:
        if name not in names:
            legal = ", ".join(map(repr, names))
            raise RunConfigError(f"--only: {name!r} is no method of {preset.name}; legal: {legal}")
    try:
        load(str(preset.config["dataset"]), "train", str(data_dir))
    except DataError as error:
        raise RunConfigError(f"--data-dir: {error}") from error


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--config",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="run-config entries; they win over those of --run-config (keys: pyproject.toml)",
    )
    shared.add_argument(
        "--run-config", metavar="FILE.toml", type=Path, help="more of them in a file"
    )
    shared.add_argument("--clients", metavar="N", type=_positive, default=10, help="default: 10")
    shared.add_argument("--app", metavar="DIR", type=_folder, default=APP, help="the Flower app")
    shared.add_argument(
        "--out", metavar="DIR", default="", help="folder of the results (default: runs/<time>-...)"
    )
    results = argparse.ArgumentParser(add_help=False)
    results.add_argument(
        "--out", metavar="DIR", type=_folder, default=APP / "sim" / "results",
        help="folder of the results (default: sim/results)",
    )  # fmt: skip
    results.add_argument("--quick", action="store_true", help="small and short: a smoke test")
    parser = argparse.ArgumentParser(prog="python -m sim", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run_parser = commands.add_parser(
        "run", parents=[shared], help="run the app on simulated clients"
    )
    run_parser.set_defaults(command=run)
    central_parser = commands.add_parser(
        "central",
        parents=[shared],
        help="the same, beside the same model trained centrally on the original samples",
    )
    central_parser.add_argument("--seeds", metavar="N", type=_positive, default=1)
    central_parser.set_defaults(command=central)
    theory_parser = commands.add_parser(
        "theory",
        parents=[results],
        help="orders of convergence, bias, variance and bytes on small problems",
    )
    theory_parser.add_argument(
        "--seeds", metavar="N", type=_several, help="at least 2 (default: 5; with --quick, 2)"
    )
    theory_parser.set_defaults(command=theory)
    cost_parser = commands.add_parser(
        "cost",
        parents=[results],
        help="time and memory of a round on the device, beside a local gradient step",
    )
    cost_parser.add_argument(
        "--data-dir", metavar="DIR", default="", help="folder of CIFAR-10 (default: digits)"
    )
    cost_parser.set_defaults(command=cost)
    compare_parser = commands.add_parser(
        "compare",
        help="bytes to accuracy: this app, gradient compression, FedAvg and image upload",
    )
    compare_parser.add_argument("--preset", choices=PRESETS, required=True)
    compare_parser.add_argument(
        "--data-dir", metavar="DIR", type=_folder, default=_folder("data"),
        help="folder of the data set (default: data)",
    )  # fmt: skip
    compare_parser.add_argument(
        "--seeds", metavar="N", type=_positive, help="default: the preset's"
    )
    compare_parser.add_argument("--only", metavar="METHOD", nargs="+", default=[])
    compare_parser.add_argument(
        "--jobs", metavar="N", type=_positive, default=1,
        help="runs at a time (default: 1; with more, seconds are those of shared cores)",
    )  # fmt: skip
    compare_parser.add_argument(
        "--report", action="store_true", help="table and figures from the results that are there"
    )
    compare_parser.add_argument("--app", type=_folder, default=APP, help=argparse.SUPPRESS)
    compare_parser.add_argument(
        "--out", metavar="DIR", type=_folder, default=APP / "sim" / "results",
        help="folder of the results (default: sim/results)",
    )  # fmt: skip
    compare_parser.set_defaults(command=compare)
    importance_parser = commands.add_parser(
        "importance",
        parents=[shared],
        help="importance scores beside random, half of the samples kept (CIFAR-10)",
    )
    importance_parser.add_argument("--mode", choices=("streaming", "replay"), required=True)
    importance_parser.add_argument("--seeds", metavar="N", type=_positive, default=3)
    importance_parser.add_argument("--importances", metavar="NAME", nargs="+", default=[])
    importance_parser.set_defaults(command=importance)
    return parser


@contextmanager
def _results_folder(out: str, config: Mapping[str, ConfigValue]) -> Iterator[Path]:
    folder = _make_folder(out, config)
    try:
        yield folder
    except BaseException:
        with suppress(OSError):  # what was written before the failure stays
            folder.rmdir()
        raise


def _make_folder(out: str, config: Mapping[str, ConfigValue]) -> Path:
    """Create the results folder: `out`, or a new one under ``runs``."""
    if out:
        folder = Path(out).expanduser().absolute()
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    labels = [str(config[key]) for key in ("dataset", "strategy") if key in config]
    name = "-".join([f"{datetime.now():%Y%m%d-%H%M%S}", *labels])
    attempt = 1
    while True:
        folder = Path("runs", name if attempt == 1 else f"{name}-{attempt}").absolute()
        with suppress(FileExistsError):  # another launcher in the same second
            folder.mkdir(parents=True)
            return folder
        attempt += 1


def _echo(line: str) -> None:
    print(line, flush=True)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number >= 1")
    return int(text)


def _several(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number >= 2")
    return int(text)


def _folder(text: str) -> Path:
    return Path(text).expanduser().absolute()


if __name__ == "__main__":
    sys.exit(main())
