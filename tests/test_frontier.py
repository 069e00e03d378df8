"""Tests of sim.frontier."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fl_app.config import RunConfig
from sim.cli.commands import cli
from sim.cli.options import APP
from sim.frontier.plans import (
    BATCH,
    BUDGET,
    DATA,
    LEVERS_BASE,
    OURS,
    RAW,
    Task,
    run_config,
    tasks,
    visits,
)
from sim.frontier.points import RECIPE, Mean, Point, best_within, bytes_for, envelope, means
from sim.frontier.report import knob, levers, report, rows, settled, summary
from sim.frontier.run import Job, read_frontier
from sim.run_config import read_defaults


def point(method: str, uplink: int, accuracy: float, seed: int = 0, **config: object) -> Point:
    shape = {"codec": "dct", "step": 0.5, "quality": 10, "width": 16, "seed": seed, **config}
    return Point(
        *("cifar10", method, shape, seed, 10, accuracy, uplink, 0, uplink // 40, 100, 9.0),
        *("two cores", {}),
    )


def mean(uplink: float, accuracy: float, method: str = OURS) -> Mean:
    return Mean(method, {}, accuracy, math.nan, uplink, 10, 10, 1.0, 1)


@pytest.mark.parametrize("name", DATA)
def test_every_task_is_a_run_that_the_app_takes(name: str) -> None:
    defaults = read_defaults(APP)
    planned = list(tasks(name, 2))
    assert len({task.title for task in planned}) == len(planned)
    assert {task.seed for task in planned} == {0, 1}
    for task in planned:
        config = RunConfig.from_run_config({**defaults, **run_config(task)})
        if config.strategy == "replay":
            assert config.samples_per_round == 0
            if task.method == BUDGET:
                assert config.uplink_budget_total in DATA[name].budgets
                assert config.num_rounds == 1
                assert config.server_steps * BATCH >= (DATA[name].visits or 300_000) - BATCH
            else:
                samples = task.samples or DATA[name].train
                assert config.num_rounds == 1
                steps = (DATA[name].visits or visits(samples)) // BATCH
                assert config.server_steps == task.config.get("server-steps", steps)


def test_visits_are_bounded_and_grow_with_the_samples() -> None:
    found = [visits(n) for n in (10, 1_000, 7_500, 10_000, 20_000, 50_000)]
    assert found == sorted(found) and found[0] == 300_000 and found[-1] == 24 * 50_000


def test_seeds_are_averaged_and_nothing_else() -> None:
    other_machine = {"threads": 1, "precision": "bf16", "ema-decay": 0.0}  # the last is a default
    points = [
        point(OURS, 100, 0.5),
        point(OURS, 110, 0.6, seed=1, **other_machine),
        point(OURS, 90, 0.4, step=1.0),
    ]
    coarse, usual = means(points)
    assert (coarse.uplink_bytes, coarse.seeds) == (90, 1) and math.isnan(coarse.deviation)
    assert (usual.accuracy, usual.uplink_bytes, usual.seeds) == (pytest.approx(0.55), 105, 2)
    assert usual.deviation == pytest.approx(0.0707, abs=1e-4)


def test_frontier_leaves_out_what_costs_more_for_less() -> None:
    points = [mean(100, 0.5), mean(300, 0.7), mean(200, 0.72), mean(100, 0.4), mean(900, 0.72)]
    assert [(p.uplink_bytes, p.accuracy) for p in envelope(points)] == [(100, 0.5), (200, 0.72)]
    best = best_within(points, 195)  # within 3 %
    assert best is not None and best.uplink_bytes == 200
    assert best_within(points, 90) is None


def test_bytes_at_an_accuracy_are_between_those_of_the_points_beside_it() -> None:
    frontier = envelope([mean(100, 0.5), mean(400, 0.7)])
    assert bytes_for(frontier, 0.6) == pytest.approx(200)
    assert bytes_for(frontier, 0.5) == pytest.approx(100)
    assert bytes_for(frontier, 0.71) is None and bytes_for(frontier, 0.4) is None


def test_table_says_how_many_more_bytes_the_best_codec_takes() -> None:
    data = replace(DATA["cifar10"], budgets={50: 1, 100: 2, 400: 9}, goals={100: 0.6})
    found = means(
        [
            point(OURS, 100, 0.60),
            point(BUDGET, 390, 0.80),
            point("AVIF", 100, 0.5, codec="avif"),
            point("WebP", 400, 0.7, codec="webp"),
            point("AVIF", 110, 0.65, codec="avif", width=32),  # no measure for another network
            point("SparseLoCo, 1 %", 300, 0.55, strategy="fedavg", **{"num-rounds": 20}),
            point(RAW, 9_000, 0.9, codec="lossless"),
        ]
    )
    nothing, first, second = rows(data, found)
    assert nothing[2] == nothing[5] == ""
    assert first[1:3] == ("60.0", "60.00") and first[6:] == ("AVIF", "2.00x", "")
    assert second[2] == "80.00" and second[6] == "WebP"
    assert second[-2] == "> 1.03x"  # no codec reaches it
    assert second[-1] == "55.00 (SparseLoCo, 1 %)"
    assert [knob(one) for one in found if one.method.startswith("Sparse")] == ["20 rounds"]


def test_rates_are_named_by_what_sets_them() -> None:
    configs: list[tuple[str, dict[str, object]]] = [
        (OURS, {"step": 0.69}),
        (OURS, {"step": 0.5, "codec": "auto"}),
        (BUDGET, {"codec": "auto", "uplink-budget-total": 300_000, "num-rounds": 1}),
        (BUDGET, {"codec": "auto", "uplink-budget-total": 300_000, "num-rounds": 2}),
        ("AVIF", {"codec": "avif", "avif-speed": 3}),
        ("AVIF", {"codec": "avif", "avif-speed": 0}),
        ("WebP", {"codec": "webp", "avif-speed": 0}),
    ]
    found = [knob(means([point(method, 9_000, 0.5, **config)])[0]) for method, config in configs]
    assert found == [
        *("step 0.69", "step 0.5, auto", "budget 300.0 kB", "budget 300.0 kB, 2 rounds"),
        *("quality 10", "quality 10, speed 0", "quality 10"),
    ]


def test_levers_are_compared_in_pairs_of_seeds_and_steps() -> None:
    data, base, lever = DATA["cifar10"], f"{OURS} {LEVERS_BASE}", f"{OURS} without cutout"
    samples, step = data.ours[0]
    to_the_end = replace(point(OURS, 300_000, 0.80, step=step), steps=2000, samples=samples)
    points = [
        point(base, 300_000, 0.70), point(base, 300_000, 0.74, seed=1),
        point(OURS, 300_000, 0.99, seed=2),  # other samples, at another step
        point(lever, 310_000, 0.69), point(lever, 310_000, 0.72, seed=1),
        point(lever, 310_000, 0.10, seed=3),
        to_the_end,
        replace(to_the_end, method=lever, accuracy=0.79),
        replace(to_the_end, method=lever, accuracy=0.10, steps=2001),
        replace(point(OURS, 300_000, 0.99, seed=3, step=step, width=32), samples=samples),
    ]  # fmt: skip
    _, head, short, long = levers(data, points)
    assert head.split()[-5:] == ["steps", "B/sample", "points", "+/-", "n"]
    assert short.split() == ["without", "cutout", "100", "40.0", "-1.50", "0.71", "2"]
    assert long.split() == ["without", "cutout", "2,000", "53.6", "-1.00", "1"]
    assert levers(data, points[:3]) == []


def test_points_of_one_seed_are_left_out_where_others_have_two(tmp_path: Path) -> None:
    once = point(OURS, 400_000, 0.9, step=0.3)
    twice = [point(OURS, 300_000, 0.7), point(OURS, 300_100, 0.72, seed=1)]
    long = replace(point("AVIF", 500_000, 0.6, codec="avif"), seconds=2_401.0)
    assert [one.seeds for one in settled(means([once, *twice, long]))] == [2, 1]
    assert len(settled(means([once, long]))) == 2
    lines = report("cifar10", [once, *twice, long], tmp_path)
    assert "left out: 1 points of one seed" in lines and not any("90.00" in one for one in lines)
    assert "90.00" not in "\n".join(summary("cifar10", [once, *twice, long]))


def test_the_summary_leaves_out_budgets_that_nobody_measured() -> None:
    points = [
        point(OURS, 300_000, 0.7), point(OURS, 600_000, 0.8, step=0.3),
        point("AVIF", 305_000, 0.6), point("SparseLoCo, 1 %", 250_000, 0.4),
    ]  # fmt: skip
    head, _, *lines = summary("cifar10", points)
    assert head.startswith("| CIFAR-10, ResNet-9, 10 clients: uplink at most |")
    assert lines == ["| 300.0 kB | 70.00 | 60.00 (AVIF) | 40.00 (SparseLoCo, 1 %) |"]
    assert summary("cifar10", points[:2]) == []


def test_report_writes_table_and_figure(tmp_path: Path) -> None:
    points = [point(OURS, 300_000, 0.7), point(OURS, 300_100, 0.72, seed=1), point(RAW, 10**8, 0.9)]
    lines = report("cifar10", points, tmp_path)
    assert any("71.00 ± 1.41" in line for line in lines)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"frontier-cifar10.{end}" for end in ("txt", "md", "png")
    }


def test_what_is_measured_is_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "frontier-cifar10.jsonl"
    task = Task("cifar10", OURS, {"codec": "dct", "step": 0.5}, 100, 0)
    job = Job(task, APP, path, {"data-dir": "here", "threads": 1})
    assert job.needed()
    config = {k: v for k, v in job.values().items() if k not in ("data-dir", "stem")}
    row = asdict(replace(point(OURS, 10, 0.5), config=config))  # of before there was a stem
    del row["recipe"]  # and of before a training was another
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert job.needed()
    path.write_text(json.dumps(row | {"recipe": RECIPE}) + "\n", encoding="utf-8")
    assert not job.needed()
    assert not replace(job, overrides={"data-dir": "there", "threads": 2}).needed()
    assert replace(job, overrides={"width": 8}).needed()
    assert replace(job, task=replace(task, seed=1)).needed()


def test_command_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    runner = CliRunner()
    for arguments in (
        ["--only", "morse", "--data-dir", str(tmp_path)],
        ["--data-dir", str(tmp_path), "--out", str(tmp_path)],
        ["--report", "--out", str(tmp_path)],
    ):
        assert runner.invoke(cli, ["frontier", *arguments]).exit_code


@pytest.mark.slow
def test_a_point_is_trained_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = replace(DATA["fashion-mnist"], dataset="mnist5k", clients=3)
    monkeypatch.setitem(DATA, "digits", digits)  # type: ignore[arg-type]
    task = Task("digits", OURS, {"codec": "dct", "step": 0.5}, 300, 0)
    overrides = {"server-steps": 30, "width": 8, "augment": "none", "ema-decay": 0.8}
    job = Job(task, APP, tmp_path / "frontier-digits.jsonl", overrides)  # type: ignore[arg-type]
    job.perform()
    (found,) = read_frontier(tmp_path, "digits")
    assert not job.needed()
    assert found.samples == 300 and found.steps == 30 and found.accuracy > 0.3
    assert 300 * 20 < found.uplink_bytes < 300 * 200 and found.downlink_bytes > 0
