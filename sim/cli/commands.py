"""The subcommands. Modules that import torch are imported by the commands that need them."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import click
import typer

from sim.cli.checks import check_run
from sim.cli.options import (
    APP,
    RESULTS,
    AppFolder,
    BankFile,
    Clients,
    Config,
    ConfigFile,
    DigitsOrCifar10,
    Engine,
    OtherApp,
    Overwrite,
    Processes,
    Quick,
    ResultsFolder,
    Resume,
    RunFolder,
    Tensorboard,
    absolute,
    folder,
)
from sim.cli.results_folder import LOG, REPORT, results_folder
from sim.cli.resume import keep_run, kept_run
from sim.cli.run_help import RunCommand
from sim.cli.run_log import kept_log, print_line
from sim.compare.presets import PRESETS, Preset
from sim.fleet import Fleet
from sim.launcher import launch, launch_directly
from sim.new_app import write_app
from sim.run_config import ConfigValue, RunConfigError, make_run_config, read_defaults
from sim.superlink import KEEP_FREED_MEMORY

cli = typer.Typer(
    help="Run the app on simulated clients, and measure it.",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

bank = typer.Typer(help="Check, show, export or time the samples that a run has received.")
cli.add_typer(bank, name="bank")


@cli.command(cls=RunCommand)
def run(
    config: Config = None,
    run_config: ConfigFile = None,
    clients: Clients = 10,
    app: AppFolder = APP,
    out: RunFolder = "",
    overwrite: Overwrite = False,
    resume: Resume = None,
    engine: Engine = "flower",
    processes: Processes = 0,
    tensorboard: Tensorboard = False,
) -> None:
    """Run the app on simulated clients and print the run folder."""
    start = _launcher(engine, processes, tensorboard=tensorboard)
    if resume is not None:
        _resume(resume, config or (), run_config, app, out, start, overwrite=overwrite)
        return
    overrides = make_run_config(app, config or (), run_config)
    effective = read_defaults(app) | overrides
    check_run(app, effective, clients)
    if "out-dir" not in effective:  # an app of another kind, which writes no run folder
        start(app, overrides, clients, print_line)
        return
    place = out or str(effective["out-dir"])
    with (
        results_folder(place, effective, overwrite=overwrite) as results,
        kept_log(results / LOG, print_line) as echo,
    ):
        if app.resolve() == APP:
            keep_run(results, effective | {"out-dir": str(results)}, clients)
        start(app, overrides | {"out-dir": str(results)}, clients, echo)
    _tell_folder(results)


def _tell_folder(results: Path) -> None:
    """Print where a run's results are, and the page that shows them."""
    print_line(f"run folder: {results}")
    if (results / REPORT).is_file():
        print_line(f"report: {results / REPORT}")


def _launcher(engine: str, processes: int, *, tensorboard: bool = False) -> Callable[..., None]:
    """Return what runs an app on simulated clients, as `launch` does."""
    if tensorboard:
        return partial(_with_scalars, _launcher(engine, processes))
    if engine == "direct":
        return partial(launch_directly, processes=processes)
    if processes:
        raise RunConfigError(
            f"--processes {processes} is of --engine direct; Flower's engine has one for each core"
        )
    return launch


def _with_scalars(
    start: Callable[..., None],
    app: Path,
    run_config: Mapping[str, ConfigValue],
    clients: int,
    echo: Callable[[str], None],
) -> None:
    """Run an app, and write its rounds for TensorBoard."""
    if "out-dir" not in run_config:
        raise RunConfigError(f"--tensorboard needs an app that writes rounds.jsonl, unlike {app}")
    from sim.tensorboard import as_scalars

    with as_scalars(Path(str(run_config["out-dir"])), echo) as tell:
        start(app, run_config, clients, tell)


def _resume(
    place: Path,
    config: Sequence[str],
    run_config: Path | None,
    app: Path,
    out: str,
    start: Callable[..., None],
    *,
    overwrite: bool,
) -> None:
    """Go on with the run in a folder."""
    if out or overwrite or app.resolve() != APP:
        raise RunConfigError(f"--resume {place} takes no --out, no --overwrite and no other --app")
    overrides = make_run_config(app, config, run_config)
    del overrides["data-dir"]  # not asked for: that of the run
    if any(pair.startswith("data-dir=") for pair in config):
        overrides |= make_run_config(app, config)
    known, clients = kept_run(place, overrides)
    check_run(app, known, clients)
    with (
        results_folder(str(place), known) as results,
        kept_log(results / LOG, print_line, more=True) as echo,
    ):
        start(app, known | {"out-dir": str(results), "resume": True}, clients, echo)
    _tell_folder(results)


@cli.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(parser=absolute, metavar="RUN ...", help="Run folders.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            parser=absolute,
            metavar="FILE",
            help="The page.",
            show_default="report.html in the run folder; of several runs, here",
        ),
    ] = None,
) -> None:
    """Write one HTML page of a run, or of several side by side: numbers, figures, pictures."""
    from fl_app.report import ReportError, write_report

    path = out or (runs[0] / REPORT if len(runs) == 1 else absolute(REPORT))
    try:
        write_report(runs, path)
    except ReportError as error:
        raise RunConfigError(str(error)) from error
    print_line(f"report: {path}")


@cli.command()
def central(
    config: Config = None,
    run_config: ConfigFile = None,
    clients: Clients = 10,
    app: AppFolder = APP,
    out: RunFolder = "",
    seeds: Annotated[int, typer.Option(min=1, metavar="N")] = 1,
) -> None:
    """Run it beside the same model trained centrally on the original samples."""
    from sim.central import beside_central_training

    overrides = make_run_config(app, config or (), run_config)
    effective = read_defaults(app) | overrides
    check_run(app, effective, clients)
    with results_folder(out, effective | {"strategy": "central"}) as results:
        beside_central_training(app, overrides, clients, seeds, results, print_line)
    print_line(f"results: {results}")


@cli.command()
def train(
    bank: Annotated[
        Path, typer.Option("--bank", parser=absolute, metavar="PATH", help="The bank's file.")
    ],
    config: Config = None,
    run_config: ConfigFile = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE,VALUE ...", help="Train on all combinations of these."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, metavar="N")] = 1,
    out: RunFolder = "",
    overwrite: Overwrite = False,
) -> None:
    """Train any model on the samples that a run has received, with no further byte."""
    from sim.bank_training import POINTS, grid_of, train_on
    from strategies.processes import Processes, together

    points = grid_of(APP, grid or ())
    effective = read_defaults(APP) | make_run_config(APP, config or (), run_config)
    several = len(points) * seeds > 1  # which go on where they were left off

    def trained(processes: Processes) -> None:
        if not processes.is_first:
            train_on(bank, effective, points, seeds, Path(), processes=processes)
            return
        with results_folder(
            out, effective | {"strategy": "bank"}, overwrite=None if several else overwrite
        ) as results:
            if overwrite:
                (results / POINTS).unlink(missing_ok=True)
            train_on(bank, effective, points, seeds, results, print_line, processes)
        print_line(f"results: {results}")

    together(trained)


@cli.command()
def keys(
    out: Annotated[
        Path, typer.Option(parser=folder, metavar="DIR", help="Folder of the keys; kept if there.")
    ],
    host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME ...",
            help="DNS names and addresses of the server; the first goes to Flower's configuration.",
            show_default="localhost, or as before",
        ),
    ] = None,
    devices: Annotated[
        int, typer.Option(min=0, metavar="N", help="Devices in all; those with keys keep them.")
    ] = 0,
    port: Annotated[
        int,
        typer.Option(
            min=0, max=65535, help="Port of the server.", show_default="8000, or as before"
        ),
    ] = 0,
    days: Annotated[
        int, typer.Option(min=1, max=3650, help="Validity of the server's certificate.")
    ] = 365,
    connection: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Of the server in Flower's configuration.",
            show_default="fleet, or as before",
        ),
    ] = "",
    register: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Register the devices with the running server of this connection."
        ),
    ] = "",
) -> None:
    """Make the certificates and device keys of a deployment, and register the devices."""
    from codec.packages import needed_packages

    with needed_packages():
        from sim.keys import KeyFolder, configuration, make_keys
        from sim.keys import register as register_devices

    place = KeyFolder(out)
    for line in make_keys(place, host or (), devices, connection=connection, port=port, days=days):
        print_line(f"made {line}")
    if register:
        with configuration(place, register) as env:
            new, known = register_devices(env, place.public_keys(), register, print_line)
        print_line(f"registered with {register}: {new} devices, {known} known before")
    print_line(f"keys: {out}; what to do with them: {out / 'README.md'}")


@cli.command()
def deploy(
    config: Config = None,
    run_config: ConfigFile = None,
    nodes: Annotated[int, typer.Option(min=1, metavar="N", help="SuperNodes.")] = 3,
    app: AppFolder = APP,
    out: RunFolder = "",
    overwrite: Overwrite = False,
) -> None:
    """Run the app on a SuperLink and SuperNodes of this machine, with TLS and device keys."""
    from codec.packages import needed_packages

    with needed_packages():
        from sim.deploy import run_deployment

    overrides = make_run_config(app, config or (), run_config)
    effective = read_defaults(app) | overrides
    check_run(app, effective, nodes, "--nodes")
    place = out or str(effective.get("out-dir", ""))
    with (
        results_folder(place, effective, overwrite=overwrite) as results,
        kept_log(results / LOG, print_line) as echo,
    ):
        run_deployment(app, overrides | {"out-dir": str(results)}, nodes, echo)
    _tell_folder(results)


@cli.command()
def theory(
    out: ResultsFolder = RESULTS,
    quick: Quick = False,
    seeds: Annotated[
        int | None,
        typer.Option(min=2, metavar="N", help="At least 2.", show_default="5; with --quick, 2"),
    ] = None,
) -> None:
    """Check orders of convergence, bias, variance and bytes on small problems."""
    from sim.theory.report import FULL, QUICK, check_theory

    scale = QUICK if quick else FULL
    check_theory(out, replace(scale, seeds=seeds) if seeds else scale, print_line)
    print_line(f"results: {out}")


@cli.command()
def cost(
    out: ResultsFolder = RESULTS,
    quick: Quick = False,
    data_dir: DigitsOrCifar10 = "",
) -> None:
    """Measure time and memory of a round on the device, beside a local gradient step."""
    from sim.cost import FULL, QUICK, measure_cost

    case, repetitions = (QUICK, 3) if quick else (FULL, 15)
    images = str(absolute(data_dir)) if data_dir else ""
    measure_cost(out, case, images, repetitions=repetitions, echo=print_line)
    print_line(f"results: {out}")


@cli.command()
def bench(
    out: ResultsFolder = RESULTS,
    quick: Quick = False,
    data_dir: DigitsOrCifar10 = "",
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="SECTION ...", help="encoding, training, rounds, startup."),
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="NAME", help="Of the training, such as cuda.")
    ] = "cpu",
    report: Annotated[
        bool, typer.Option("--report", help="Table and figure of what has been measured.")
    ] = False,
    app: OtherApp = APP,
) -> None:
    """Measure coding beside WebP, training beside plain PyTorch, rounds beside FedAvg."""
    from sim.bench.report import SECTIONS, measure_bench
    from sim.bench.report import report as table_of

    for section in only or ():
        if section not in SECTIONS:
            legal = ", ".join(SECTIONS)
            raise RunConfigError(f"--only: {section!r} is no section; legal: {legal}")
    if not report:
        folder = str(absolute(data_dir)) if data_dir else ""
        sections, repeats = only or list(SECTIONS), 2 if quick else 7
        measure_bench(
            out,
            folder,
            sections,
            app,
            repeats=repeats,
            device=device,
            quick=quick,
            echo=print_line,
        )
    for line in table_of(out):
        print_line(line)
    print_line(f"results: {out}")


@cli.command()
def new(
    folder: Annotated[Path, typer.Argument(parser=absolute, metavar="DIR", help="A new folder.")],
) -> None:
    """Write a small Flower app of your own that uses the strategies."""
    name = write_app(folder)
    print_line(f"wrote {folder}: your data and model go to {name}/task.py")
    print_line(f"run it: python -m sim run --app {folder}")


@cli.command()
def fleet(
    devices: Annotated[int, typer.Option(min=1, metavar="N")] = Fleet.devices,
    samples: Annotated[
        float, typer.Option(min=0, metavar="N", help="That a device sends a day.")
    ] = Fleet.samples,
    sample_bytes: Annotated[
        float, typer.Option(min=0.01, metavar="BYTES", help="Of a coded sample.")
    ] = Fleet.sample_bytes,
    pixels: Annotated[
        int, typer.Option(min=1, metavar="N", help="Values of a decoded sample.")
    ] = Fleet.pixels,
    decode_ms: Annotated[
        float, typer.Option(min=0, metavar="MS", help="Of a core, to decode a sample.")
    ] = Fleet.decode_ms,
    weights: Annotated[int, typer.Option(min=1, metavar="N", help="Of the model.")] = Fleet.weights,
    participations: Annotated[
        float, typer.Option(min=0, metavar="N", help="In federated averaging, a day.")
    ] = Fleet.participations,
) -> None:
    """Work out on paper what a fleet sends, and what its server has to do."""
    from sim.fleet import report

    for line in report(
        Fleet(
            devices,
            samples,
            sample_bytes,
            pixels,
            decode_ms=decode_ms,
            weights=weights,
            participations=participations,
        )
    ):
        print_line(line)


@cli.command()
def compare(
    preset: Annotated[str, typer.Option(click_type=click.Choice(list(PRESETS)))],
    data_dir: Annotated[
        Path, typer.Option(parser=folder, metavar="DIR", help="Folder of the data set.")
    ] = Path("data"),
    seeds: Annotated[
        int | None, typer.Option(min=1, metavar="N", show_default="the preset's")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="METHOD ...", help="Run these methods.")
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Runs at a time; with more, seconds are of shared cores."
        ),
    ] = 1,
    report: Annotated[
        bool, typer.Option("--report", help="Table and figures from the results that are there.")
    ] = False,
    app: OtherApp = APP,
    out: ResultsFolder = RESULTS,
) -> None:
    """Compare bytes to accuracy: this app, gradient compression, FedAvg and image codecs."""
    from sim.compare import report as reports
    from sim.compare import runner
    from sim.compare.results import read_results

    chosen, methods = PRESETS[preset], only or ()
    if report:
        results = read_results(out / f"{preset}.jsonl")
    else:
        _check_comparison(chosen, methods, data_dir)
        os.environ.update(KEEP_FREED_MEMORY)  # trials train in processes started here
        results = runner.compare(
            chosen, app, out, str(data_dir), seeds=seeds, only=methods, jobs=jobs, echo=print_line
        )
    if not results.runs:
        raise RunConfigError(f"no results of {preset} in {out}; leave out --report")
    for line in reports.report(chosen, results, out):
        print_line(line)
    print_line(f"results: {out}")


@cli.command()
def frontier(
    config: Config = None,
    data: Annotated[
        Literal["cifar10", "fashion-mnist", "tiny-imagenet"],
        typer.Option(help="What is learned."),
    ] = "cifar10",
    data_dir: Annotated[
        Path, typer.Option(parser=folder, metavar="DIR", help="Folder of the data set.")
    ] = Path("data"),
    seeds: Annotated[int, typer.Option(min=1, metavar="N")] = 2,
    only: Annotated[
        list[str] | None, typer.Option(metavar="METHOD ...", help="Measure these methods.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, metavar="N", help="Trainings at a time.")] = 1,
    report: Annotated[
        bool, typer.Option("--report", help="Table and figure from the points that are there.")
    ] = False,
    app: OtherApp = APP,
    out: ResultsFolder = RESULTS,
) -> None:
    """Measure accuracy at every uplink budget: this app, image codecs and other baselines."""
    from sim.frontier.plans import DATA, tasks
    from sim.frontier.report import report as write_report
    from sim.frontier.run import measure, read_frontier

    planned = list(tasks(data, seeds))
    methods = list(dict.fromkeys(task.method for task in planned))
    for name in only or ():
        if name not in methods:
            legal = ", ".join(map(repr, methods))
            raise RunConfigError(f"--only: {name!r} is no method of {data}; legal: {legal}")
    if not report:
        _check_data(DATA[data].dataset, data_dir)
        os.environ.update(KEEP_FREED_MEMORY)
        chosen = [task for task in planned if task.method in (only or methods)]
        overrides = make_run_config(app, config or ()) if config else {}
        threads = max(1, (os.cpu_count() or 1) // jobs)
        overrides |= {"data-dir": str(data_dir), "threads": threads}
        measure(chosen, app, out, overrides, jobs, print_line)
    points = read_frontier(out, data)
    if not points:
        raise RunConfigError(f"no points of {data} in {out}; leave out --report")
    for line in write_report(data, points, out):
        print_line(line)
    print_line(f"results: {out}")


@cli.command()
def data(out: ResultsFolder = RESULTS, quick: Quick = False) -> None:
    """Compare the defaults with lossless samples on every kind of data."""
    from sim.data_kinds.report import FULL, QUICK, compare_kinds

    compare_kinds(out, QUICK if quick else FULL, print_line)
    print_line(f"results: {out}")


@cli.command()
def codecs(
    out: ResultsFolder = RESULTS,
    fashion_mnist: Annotated[
        str, typer.Option(metavar="DIR", help="Folder of its IDX files.", show_default="without")
    ] = "",
    cifar10: Annotated[
        str, typer.Option(metavar="DIR", help="Folder of CIFAR-10.", show_default="without")
    ] = "",
    tiny_imagenet: Annotated[
        str,
        typer.Option(metavar="DIR", help="Image folder, at 64 pixels.", show_default="without"),
    ] = "",
    photographs: Annotated[
        str,
        typer.Option(metavar="DIR", help="Image folder, at 224 pixels.", show_default="without"),
    ] = "",
    images: Annotated[
        int,
        typer.Option(
            min=2, metavar="N", help="Coded of a data set, at most.", show_default="8 to 64"
        ),
    ] = 64,
    seeds: Annotated[
        int, typer.Option(min=0, metavar="N", help="Networks trained at each rate.")
    ] = 2,
    report: Annotated[
        bool, typer.Option("--report", help="Table from the results that are there.")
    ] = False,
) -> None:
    """Compare codec auto with the block transform and image codecs, at equal error and accuracy."""
    from sim import codecs as comparison

    if not report:
        folders = (fashion_mnist, cifar10, tiny_imagenet, photographs)
        known = [
            replace(dataset, images=min(images, dataset.images))
            for dataset in comparison.data_sets(
                *(str(absolute(name)) if name else "" for name in folders)
            )
        ]
        comparison.measure_codecs(out, known, seeds, print_line)
    for line in comparison.report(out):
        print_line(line)
    print_line(f"results: {out}")


@cli.command()
def scale(
    sizes: Annotated[
        list[int] | None,
        typer.Option(min=2, metavar="N ...", help="Clients.", show_default="10 100 1000"),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, metavar="N")] = 5,
    processes: Processes = 0,
    config: Config = None,
    report: Annotated[
        bool, typer.Option("--report", help="Table from the rows that are there.")
    ] = False,
    app: OtherApp = APP,
    out: ResultsFolder = RESULTS,
) -> None:
    """Measure seconds, memory and bytes of the direct engine against the number of clients."""
    from sim.scale import FIGURE, draw, measure_scale, read_rows
    from sim.scale import report as table_of

    if not report:
        overrides = make_run_config(app, config or ()) if config else {}
        os.environ.update(KEEP_FREED_MEMORY)
        measure_scale(out, app, sizes or (10, 100, 1000), rounds, processes, overrides, print_line)
    rows = read_rows(out)
    for line in table_of(rows):
        print_line(line)
    if rows:
        draw(rows, out / FIGURE)
    print_line(f"results: {out}")


@cli.command()
def faults(
    out: ResultsFolder = RESULTS,
    quick: Quick = False,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="FAULT ...", help="Run these kinds, even if there are results."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N")] = 0,
) -> None:
    """Kill and spoil whatever can be, and count the samples that are lost or doubled."""
    from sim.faults.report import FAULTS, run_faults

    names = [fault.name for fault in FAULTS]
    for name in only or ():
        if name not in names:
            legal = "; ".join(names)
            raise RunConfigError(f"--only: {name!r} is no kind of fault; legal: {legal}")
    run_faults(out, quick=quick, only=only or (), seed=seed, echo=print_line)
    print_line(f"results: {out}")


@cli.command()
def duplicates(
    out: ResultsFolder = RESULTS,
    data_dir: Annotated[
        str, typer.Option(metavar="DIR", help="Folder of CIFAR-10.", show_default="without")
    ] = "",
    images: Annotated[int, typer.Option(min=100, metavar="N", help="Of a data set.")] = 300,
) -> None:
    """Measure how well a bank recognises samples that come again in another code."""
    from sim.duplicates import measure_duplicates

    measure_duplicates(out, str(absolute(data_dir)) if data_dir else "", images, print_line)
    print_line(f"results: {out}")


@cli.command("budget-law")
def budget_law(
    fit: Annotated[list[Path], typer.Option(metavar="FILE ...", help="JSONL of accuracies.")],
    data_dir: Annotated[
        str, typer.Option(metavar="DIR", help="Folder of the data sets.", show_default="data")
    ] = "",
) -> None:
    """Fit the law by which a budget of the whole run divides into samples and precision."""
    from sim.budget_law import fit_records, read_records

    folder_of_data = str(absolute(data_dir)) if data_dir else ""
    fit_records(read_records(map(absolute, fit)), folder_of_data, print_line)


@cli.command()
def importance(
    mode: Annotated[Literal["streaming", "replay"], typer.Option()],
    config: Config = None,
    run_config: ConfigFile = None,
    clients: Annotated[int, typer.Option(hidden=True)] = 10,  # of no effect: CLIENTS share the data
    app: AppFolder = APP,
    out: ResultsFolder = RESULTS,
    seeds: Annotated[int, typer.Option(min=1, metavar="N")] = 3,
    importances: Annotated[list[str] | None, typer.Option(metavar="NAME ...")] = None,
) -> None:
    """Compare importance scores with random, half of the samples kept (CIFAR-10)."""
    from sim.importance import IMPORTANCES, compare_importances, to_config

    overrides = make_run_config(app, config or (), run_config)
    for name in importances or ():
        if name not in IMPORTANCES:
            from codec.options import did_you_mean

            hint = did_you_mean(name, IMPORTANCES)
            raise RunConfigError(f"--importances: {name!r} is no importance; {hint}")
    try:
        first = to_config(mode, overrides)
    except ValueError as error:
        raise RunConfigError(str(error)) from error
    compare_importances(out, first, mode, seeds, importances or IMPORTANCES, print_line)
    print_line(f"results: {out}")


@bank.command("check")
def bank_check(path: BankFile) -> None:
    """Check that all of a bank is what was written: structure, checksums, every payload."""
    from sim.banks import check_bank

    check_bank(path, print_line)


@bank.command("show")
def bank_show(path: BankFile) -> None:
    """Show what a bank holds: samples by class, replies, and bytes."""
    from sim.banks import show_bank

    show_bank(path, print_line)


@bank.command("export")
def bank_export(
    path: BankFile,
    to: Annotated[Path, typer.Option(parser=folder, metavar="DIR", help="Where to.")],
    kind: Annotated[
        str, typer.Option("--format", metavar="NAME", help="folder, npz, parquet or datasets.")
    ] = "folder",
) -> None:
    """Write a bank's samples as an image folder, npz, Parquet, or for Hugging Face datasets."""
    from sim.banks import export_bank

    export_bank(path, to, kind, print_line)


@bank.command("compact")
def bank_compact(path: BankFile) -> None:
    """Remove payloads that are nothing but duplicates, and what room the file does not need."""
    from sim.banks import compact_bank

    compact_bank(path, print_line)


@bank.command("speed")
def bank_speed(
    path: BankFile,
    batch_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="Samples in a minibatch.")
    ] = 128,
    epochs: Annotated[int, typer.Option(min=1, metavar="N", help="That are counted.")] = 3,
) -> None:
    """Measure minibatches of a bank, in memory and beyond the memory limit."""
    from sim.bank_speed import measure_speed

    measure_speed(path, batch_size, epochs, print_line)


@cli.command()
def scout(
    config: Config = None,
    run_config: ConfigFile = None,
    app: AppFolder = APP,
    out: ResultsFolder = RESULTS,
    seeds: Annotated[int, typer.Option(min=1, metavar="N")] = 3,
    only: Annotated[list[str] | None, typer.Option(metavar="NAME ...")] = None,
) -> None:
    """Compare a scout's scores with the model's and with chance, at equal bytes too (CIFAR-10)."""
    from codec.options import did_you_mean
    from sim.scout import compare_scouts, contenders

    for name in only or ():
        if name not in contenders():
            hint = did_you_mean(name, contenders())
            raise RunConfigError(f"--only: {name!r} is not compared here; {hint}")
    try:
        compare_scouts(
            out, make_run_config(app, config or (), run_config), seeds, only or (), print_line
        )
    except ValueError as error:
        raise RunConfigError(str(error)) from error
    print_line(f"results: {out}")


def _check_comparison(preset: Preset, only: Sequence[str], data_dir: Path) -> None:
    """Raise `RunConfigError` on an unknown method, or if the data are not there."""
    names = [method.name for method in preset.methods]
    for name in only:
        if name not in names:
            legal = ", ".join(map(repr, names))
            raise RunConfigError(f"--only: {name!r} is no method of {preset.name}; legal: {legal}")
    _check_data(str(preset.config["dataset"]), data_dir)


def _check_data(dataset: str, data_dir: Path) -> None:
    """Raise `RunConfigError` if the data are not there."""
    from fl_app.data import DataError, load

    try:
        load(dataset, "train", str(data_dir))
    except DataError as error:
        raise RunConfigError(f"--data-dir: {error}") from error
