"""All theory checks in one go: JSON, table and figures."""

import itertools
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

from sim.theory.bytes_vs_n import measure_bytes, spread
from sim.theory.convergence import TOLERANCE, Run, slope_rows, train
from sim.theory.estimate import QUANTIZERS
from sim.theory.plots import plot_bias, plot_bytes, plot_convergence, plot_slopes, plot_variance
from sim.theory.problems import PROBLEMS
from sim.theory.variance import (
    bias_rows,
    decibels_per_bit,
    draw_statistics,
    sampling_variance,
    variance_rows,
)

Rows = Sequence[dict[str, Any]]
Echo = Callable[[str], None]


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes
    ----------
    seeds : int
        Runs per problem, >= 2.
    steps : int
        Of SGD.
    draws : int
        Of the quantizer, for mean and variance.
    bits : tuple of int
        Of the variance curve.
    parameters : tuple of int
        Model sizes n.
    """

    seeds: int
    steps: int
    draws: int
    bits: tuple[int, ...]
    parameters: tuple[int, ...]


FULL = Scale(5, 2500, 400, (2, 3, 4, 5, 6, 7, 8), (10**4, 10**5, 10**6, 10**7))
QUICK = Scale(2, 64, 32, (2, 4, 8), (10**4, 10**5, 10**6))


def check_theory(folder: Path, scale: Scale, echo: Echo = print) -> dict[str, Any]:
    """Run every check; write ``theory.json``, the tables (``theory.txt``) and the figures.

    Parameters
    ----------
    folder : Path
        Created with its parents.
    scale : Scale
    echo : callable
        Called with each line.

    Returns
    -------
    dict
        What ``theory.json`` holds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Spawned, not forked: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with context.Pool(os.cpu_count()) as pool:
        runs = _train(pool, scale, echo)
        echo(f"{scale.draws} draws of the gradient estimate of each method")
        statistics = _draw(pool, scale)
    slopes, bias, variances = slope_rows(runs), bias_rows(statistics), variance_rows(statistics)
    sizes = [row for n in scale.parameters for row in measure_bytes(n, seed=n)]
    sampling = {name: sampling_variance(name) for name in PROBLEMS}
    plot_convergence(runs, slopes, folder / "theory_convergence.png")
    plot_slopes(slopes, folder / "theory_slopes.png")
    plot_bytes(sizes, folder / "theory_bytes_vs_n.png")
    plot_variance(variances, sampling, folder / "theory_variance_vs_bits.png")
    plot_bias(bias, folder / "theory_bias.png")
    result = {
        "scale": vars(scale),
        "slopes": slopes,
        "bytes_vs_n": sizes,
        "variance_vs_bits": variances,
        "variance_db_per_bit": decibels_per_bit(variances),
        "minibatch_sampling_variance": sampling,
        "bias": bias,
    }
    lines = summary(result)
    for line in ["", *lines]:
        echo(line)
    (folder / "theory.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    text = json.dumps(result, indent=2, allow_nan=False)
    (folder / "theory.json").write_text(text + "\n", encoding="utf-8")
    return result


def _train(pool: Pool, scale: Scale, echo: Echo) -> list[Run]:
    cases = itertools.product(PROBLEMS, range(scale.seeds))
    pending = [pool.apply_async(train, (*case, scale.steps)) for case in cases]
    runs = []
    for result in pending:
        runs.append(result.get())
        echo(f"{runs[-1].problem}, seed {runs[-1].seed}: {scale.steps} steps of every method")
    return runs


def _draw(pool: Pool, scale: Scale) -> list[dict[str, Any]]:
    cases = itertools.product(PROBLEMS, QUANTIZERS, scale.bits, [scale.draws])
    return list(itertools.chain(*pool.starmap(draw_statistics, cases, chunksize=1)))


def summary(result: dict[str, Any]) -> list[str]:
    """Return the lines of all tables."""
    return [
        *_slope_lines(result["slopes"]),
        "",
        *_bytes_lines(result["bytes_vs_n"]),
        "",
        *_variance_lines(result["variance_db_per_bit"]),
        "",
        *_bias_lines(result["bias"]),
    ]


def _slope_lines(rows: Rows) -> Iterable[str]:
    yield "log-log slopes: mean and 95 % interval over the seeds; gap to full precision, paired"
    yield (
        f"{'problem':20}{'quantizer':11}{'bits':>4}  {'refinement':16}{'slope':>6}"
        f"{'interval':>18}{'gap':>7}{'interval':>18}{'final/full':>11}{'floor/final':>12}{'B/step':>7}"
    )
    for row in rows:
        mark = "" if row["within_tolerance"] else f"  gap beyond {TOLERANCE}"
        floor = "" if row["floor"] is None else f"{row['floor'] / row['final']:.2g}"
        size = row["uplink_bytes_per_step"]
        yield (
            f"{row['problem']:20}{row['quantizer']:11}{row['bits']:4}  {row['refinement']:16}"
            f"{row['slope']:6.2f}{_interval(row['low'], row['high']):>18}"
            f"{row['gap']:7.2f}{_interval(row['gap_low'], row['gap_high']):>18}"
            f"{row['final_ratio']:11.2f}{floor:>12}{'' if size is None else round(size):>7}{mark}"
        )
    yield "not refined, E[g(x_hat)] is the gradient of another loss (in the first problem, with a"
    yield "ridge of the quantizer's variance): with few bits, SGD ends at a floor"


def _interval(low: float, high: float) -> str:
    return f"[{low:.2f}, {high:.2f}]"


def _bytes_lines(rows: Rows) -> Iterable[str]:
    sizes = list(dict.fromkeys(row["n"] for row in rows))
    yield f"{'uplink bytes per client and round':34}" + "".join(f"{f'n={n}':>14}" for n in sizes)
    for method in dict.fromkeys(row["method"] for row in rows):
        found = [row["uplink_bytes"] for row in rows if row["method"] == method]
        yield f"{method:34}" + "".join(f"{size:14}" for size in found)
    yield f"quantized data varies by {100 * spread(list(rows), 'quantized data'):.2f} % over n"


def _variance_lines(rows: Rows) -> Iterable[str]:
    yield "variance of the estimate, dB per bit from 4 bits up (theory: -6.02 as bits grow)"
    for row in rows:
        yield (
            f"{row['problem']:20}{row['quantizer']:11}{row['refinement']:16}"
            f"{row['db_per_bit']:7.2f}"
        )


def _bias_lines(rows: Rows) -> Iterable[str]:
    yield (
        "mean of the estimate less the gradient: norm, its standard error (both relative to the "
        f"gradient), largest deviation in standard errors; bound {rows[0]['bound']:.2f}"
    )
    for row in rows:
        if row["unbiased"]:
            verdict = "unbiased: within" if row["within"] else "unbiased: BEYOND THE BOUND"
        else:
            verdict = "biased: not seen at this many draws" if row["within"] else "biased: measured"
        yield (
            f"{row['problem']:20}{row['quantizer']:11}{row['bits']:4}  {row['refinement']:16}"
            f"{row['relative_bias']:10.2e}{row['relative_standard_error']:10.2e}"
            f"{row['largest_deviation']:9.2f}  {verdict}"
        )
