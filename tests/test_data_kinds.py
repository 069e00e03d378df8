"""The defaults on every kind of data: the command runs, and the page has its table."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sim.__main__ import main
from sim.data_kinds import signals
from sim.data_kinds.kinds import KINDS, Kind
from sim.data_kinds.measure import Run, f1, measure, r_squared
from sim.data_kinds.page import PAGE, RAW, with_table
from sim.data_kinds.report import FULL, QUICK, bytes_each, compare_kinds, read_runs, table

SMALL = replace(QUICK, train=40)
BY_NAME = {kind.name: kind for kind in KINDS}


def run(kind: str = "8-bit", codec: str = "auto", seed: int = 0, **values: float) -> Run:
    bytes_of = {"auto": 1000, "step 0.25": 1500, "lossless": 4000}[codec]
    ours = {"score": 0.9, "payload_bytes": bytes_of, "variance_kept": 0.95}
    known = {**ours, **values}
    return Run(
        kind=kind,
        codec=codec,
        seed=seed,
        score=known["score"],
        samples=100,
        payload_bytes=int(known["payload_bytes"]),
        uplink_bytes=int(known["payload_bytes"]) + 400,
        variance_kept=known["variance_kept"],
    )


def measured() -> set[tuple[str, str]]:
    """Kinds and codecs that the command measures."""
    finer = {(kind.name, "step 0.25") for kind in KINDS if kind.finer}
    return finer | {(kind.name, codec) for kind in KINDS for codec in ("auto", "lossless")}


def rows() -> int:
    return len(measured()) - len(KINDS)


# The command


@pytest.mark.slow
def test_the_command_measures_every_kind(tmp_path: Path) -> None:
    assert main(["data", "--quick", "--out", str(tmp_path)]) == 0
    runs = read_runs(tmp_path / "data-kinds-quick.jsonl")
    assert {(r.kind, r.codec) for r in runs} == measured()
    for one in runs:
        assert one.samples > 0 and 0 < one.payload_bytes < one.uplink_bytes
        assert one.codec != "lossless" or one.variance_kept == 1
    lines = (tmp_path / "data-kinds-quick.md").read_text(encoding="utf-8").splitlines()
    assert lines == table(runs) and len(lines) == 2 + rows()


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    chosen = [BY_NAME["table"], BY_NAME["tokens"]]
    lines: list[str] = []
    runs = compare_kinds(tmp_path, SMALL, lines.append, chosen)
    assert [(r.kind, r.codec, r.seed) for r in runs] == [
        ("table", "auto", 0), ("table", "lossless", 0),
        ("tokens", "auto", 0), ("tokens", "lossless", 0),
    ]  # fmt: skip
    raw = (tmp_path / "data-kinds-quick.jsonl").read_text()
    again = compare_kinds(tmp_path, SMALL, lambda _: None, chosen)
    assert again == runs and (tmp_path / "data-kinds-quick.jsonl").read_text() == raw
    assert any(line.startswith("table, auto, seed 0: accuracy") for line in lines)


def test_a_run_repeats_itself() -> None:
    kind = BY_NAME["table-raw"]
    assert measure(kind, "auto", 1, kind.make(1, 0)) == measure(kind, "auto", 1, kind.make(1, 0))


def test_tokens_are_not_quantized() -> None:
    kind = BY_NAME["tokens"]
    task = kind.make(0, 40)
    ours, lossless = (measure(kind, codec, 0, task) for codec in ("auto", "lossless"))
    assert ours.payload_bytes == lossless.payload_bytes and ours.score == lossless.score


# What is measured


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_kind_is_what_its_title_says(kind: Kind) -> None:
    task = kind.make(3, 40)
    dtype, shape = kind.type.split(" ", 1)
    assert task.samples.dtype == task.test_samples.dtype == dtype
    assert (
        f"({', '.join(map(str, task.samples.shape[1:]))}{',' * (task.samples.ndim == 2)})" == shape
    )
    assert len(task.samples) == len(task.targets)
    assert len(task.test_samples) == len(task.test_targets)
    again, other = kind.make(3, 40), kind.make(4, 40)
    np.testing.assert_array_equal(again.samples, task.samples)
    assert not np.array_equal(other.samples, task.samples)
    assert task.targets.dtype == (np.int64 if kind.metric == "accuracy" else np.float32)


def test_values_are_in_the_range_of_their_sensor() -> None:
    twelve, sixteen = BY_NAME["12-bit"].make(0, 40), BY_NAME["16-bit"].make(0, 40)
    assert 2048 < twelve.samples.max() <= 4095
    assert sixteen.samples.max() > 32768
    faint = BY_NAME["low-contrast"].make(0, 40).samples
    assert (faint.min(), faint.max()) == (118, 130)


def test_signals_differ_between_classes() -> None:
    """A class's samples are nearer to its own mean than to that of others, as far as they go."""
    for make in (signals.scenes, signals.vowels, signals.beats):
        samples, labels = make(200, np.random.default_rng(0))
        flat = samples.reshape(len(samples), -1).astype(float)
        means = np.stack([flat[labels == label].mean(axis=0) for label in np.unique(labels)])
        nearest = np.square(flat[:, None] - means).sum(axis=2).argmin(axis=1)
        assert (nearest == labels).mean() > 2 / len(means)


def test_f1_and_r_squared() -> None:
    true = torch.tensor([[True, False], [True, True]])
    assert f1(true, true) == 1
    assert f1(torch.tensor([[True, True], [False, False]]), true) == pytest.approx(2 / 5)
    values = torch.tensor([1.0, 2.0, 3.0])
    assert r_squared(values[:, None], values) == 1
    assert r_squared(torch.full((3, 1), 2.0), values) == 0


# The table


def test_cells_are_means_over_the_seeds() -> None:
    runs = [
        run(score=0.90), run(codec="lossless", score=0.91),
        run(seed=1, score=0.94), run(codec="lossless", seed=1, score=0.95),
        run(seed=2),  # without its counterpart
    ]  # fmt: skip
    header, rule, row = table(runs)
    assert header.count("|") == rule.count("|") == row.count("|")
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "8-bit images", "uint8 (1, 28, 28)", "92.0 ± 2.8 %", "93.0 ± 2.8", "-1.0 ± 0.0",
        "10.0", "40.0", "25.0 %", "95.0 %", "met",
    ]  # fmt: skip
    assert bytes_each(runs[:1]) == 10


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ({}, "met"),
        ({"score": 0.8}, "missed: accuracy"),
        ({"payload_bytes": 1400}, "missed: bytes"),
        ({"score": 0.8, "payload_bytes": 1400}, "missed: accuracy, bytes"),
        ({"payload_bytes": 4000, "variance_kept": 1.0}, "lossless"),
    ],
)
def test_the_verdict(ours: dict[str, float], verdict: str) -> None:
    row = table([run(**ours), run(codec="lossless")])[-1]
    assert row.endswith(f"| {verdict} |")


def test_half_the_step_has_a_row_of_its_own() -> None:
    runs = [run("bands", codec) for codec in ("auto", "step 0.25", "lossless")]
    lines = table(runs)[2:]
    assert [line.split("|")[1].strip() for line in lines] == [
        "13 bands of a satellite", "13 bands of a satellite: step 0.25",
    ]  # fmt: skip
    assert ["25.0 %" in lines[0], "37.5 %" in lines[1]] == [True, True]


def test_results_are_read_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text(json.dumps(asdict(run())) + "\n")
    assert read_runs(path) == [run()]
    assert read_runs(tmp_path / "none.jsonl") == []


# The page


def test_the_page_has_the_table_of_the_raw_results() -> None:
    lines = table(read_runs(RAW))
    assert len(lines) == 2 + rows()
    assert RAW.with_suffix(".md").read_text(encoding="utf-8").splitlines() == lines
    text = PAGE.read_text(encoding="utf-8")
    assert with_table(text) == text


def test_the_raw_results_are_whole() -> None:
    runs = read_runs(RAW)
    assert {(one.kind, one.codec) for one in runs} == measured()
    for name, codec in measured():
        seeds = [one.seed for one in runs if (one.kind, one.codec) == (name, codec)]
        assert sorted(seeds) == list(range(FULL.seeds))
