"""A round of ours beside one of Flower's FedAvg with the same model, on Flower's own engine."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sim import tables
from sim.bench.spread import Spread
from sim.compare.job import machine
from sim.launcher import NOTHING_KEPT, launch
from sim.run_config import ConfigValue, RunConfigError
from sim.scale import write_digits

_SAMPLES = 10  # of a client in a round, learned by either of the two
_COMMON: Mapping[str, ConfigValue] = {
    "dataset": "fashion-mnist",  # by the format of the files
    "codec": "dct",
    "threads": 1,
    **NOTHING_KEPT,
}
METHODS: Mapping[str, Mapping[str, ConfigValue]] = {
    "ours": {
        "strategy": "replay",
        "samples-per-round": _SAMPLES,
        "server-steps": 10,
        "server-batch-size": 32,
    },
    "FedAvg": {"strategy": "fedavg", "local-steps": 1, "batch-size": _SAMPLES},
}
# Networks by the size of what FedAvg sends each way.
MODELS: Mapping[str, Mapping[str, ConfigValue]] = {
    "31 kB": {"model": "logistic"},
    "0.7 MB": {"model": "small-resnet"},
    "45 MB": {"model": "resnet18"},
}


@dataclass(frozen=True)
class Rounds:
    """Wall time of rounds.

    Attributes
    ----------
    model : str
        Key of `MODELS`.
    clients, rounds : int
        Rounds of a measurement, without the first, in which processes start.
    ours, fedavg : Spread
        Seconds a round.
    round_vs_fedavg : Spread
        Ratios of the two, measured one after the other.
    machine : str
    """

    model: str
    clients: int
    rounds: int
    ours: Spread
    fedavg: Spread
    round_vs_fedavg: Spread
    machine: str


def measure(
    app: Path,
    clients: int,
    model: str,
    rounds: int,
    repeats: int,
    echo: Callable[[str], None] = print,
) -> Rounds:
    """Run both methods in turns and return what a round takes.

    Parameters
    ----------
    app : Path
        Folder of the app.
    clients : int
    model : str
        Key of `MODELS`.
    rounds : int
        That are timed, >= 1, after a first one that is not.
    repeats : int
        Runs of each, >= 1.
    echo : callable
        Called with a line for each run.

    Raises
    ------
    RunError
        If a run fails.
    """
    found: dict[str, list[float]] = {name: [] for name in METHODS}
    with tempfile.TemporaryDirectory() as scratch:
        # Other images in each round: an image that has been sent is not sent again.
        write_digits(Path(scratch), clients * (rounds + 1) * _SAMPLES)
        for repeat in range(repeats):
            for name, method in METHODS.items():
                folder = Path(scratch) / f"{name}-{repeat}"
                values: dict[str, ConfigValue] = {
                    **_COMMON,
                    **MODELS[model],
                    **method,
                    "num-rounds": rounds + 1,
                    "eval-every": rounds + 1,
                    "data-dir": scratch,
                    "out-dir": str(folder),
                }
                seconds = _seconds_a_round(app, values, clients, rounds, folder)
                found[name].append(seconds)
                echo(f"{clients:,} clients, {model}, {name}: {seconds:.2f} s a round")
    ours, fedavg = found.values()
    return Rounds(
        model=model,
        clients=clients,
        rounds=rounds,
        ours=Spread.of(ours),
        fedavg=Spread.of(fedavg),
        round_vs_fedavg=Spread.of_ratios(ours, fedavg),
        machine=machine(),
    )


def _seconds_a_round(
    app: Path, values: Mapping[str, ConfigValue], clients: int, rounds: int, folder: Path
) -> float:
    """Return the time from the end of the first round to that of the last, over the rounds.

    As the server took it: the lines of its log come in batches.
    """
    launch(app, values, clients, lambda _: None)
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    told: Mapping[str, float] = result["round_seconds"]
    taken = {int(number): seconds for number, seconds in told.items()}
    if taken.keys() != set(range(1, rounds + 2)):
        raise RunConfigError(f"{folder}/result.json times rounds {sorted(taken)} of {rounds + 1}")
    return (sum(taken.values()) - taken[1]) / rounds


def lines(rows: Sequence[Rounds]) -> list[str]:
    """Return the table of rows, for a terminal."""
    table = tables.numbers("a round on Flower's engine", "s", "FedAvg", "over FedAvg")
    for row in rows:
        shown = (f"{row.ours.median:.2f}", f"{row.fedavg.median:.2f}", str(row.round_vs_fedavg))
        table.add_row(f"{row.clients:,} clients, model of {row.model}", *shown)
    return tables.lines(table)


def ratios(row: Rounds) -> dict[str, Spread]:
    """Return what a figure shows of a row."""
    return {f"a round of {row.clients:,} clients, {row.model} / FedAvg": row.round_vs_fedavg}
