"""Committed tables are what the raw results beside them give."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sim.compare.job import Job
from sim.compare.markdown import markdown
from sim.compare.presets import PRESETS, Preset
from sim.compare.report import tables
from sim.compare.results import read_results
from sim.frontier.plans import DATA
from sim.frontier.points import means
from sim.frontier.report import levers_table, markdown_levers, markdown_points, settled
from sim.frontier.run import read_frontier
from sim.headline import with_headline
from sim.scout import read_points, rows

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "sim" / "results"

_UPLOAD = {"codec", "quality"}  # all that older code stored of an upload's config
_GONE = {"transform": "auto", "dead-zone": 0.0, "reconstruction": "midpoint"}
_LOSSLESS = {"jpeg-xl": "jpeg-xl-lossless"}


def config_in_todays_words(run: dict[str, Any]) -> dict[str, Any]:
    """Return a run's config with the keys and values that its code had another name for.

    Raw results stay as they were written. Older code called the strategy "streaming" "sgd", and
    had options of the codec that are gone: the runs were made with the one value of each that is
    left. AVIF had one speed, and buckets of QSGD were of 512 coordinates. Uploads were trained
    outside the app, and -1 stood for the quality of a lossless codec.
    """
    config = dict(run["config"])
    for key, left in _GONE.items():
        assert config.pop(key, left) == left
    if config.get("compressor") == "qsgd":
        config.setdefault("compressor-bucket", 512)
    if config.get("strategy") == "sgd":
        config["strategy"] = "streaming"
    if config.get("codec") == "avif":  # of which there was no choice
        config.setdefault("avif-speed", 6)
    if config.get("quality") == -1:
        del config["quality"]
        config["codec"] = _LOSSLESS.get(config["codec"], config["codec"])
    return config


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_tables_are_those_of_the_raw_results(preset: Preset) -> None:
    results = read_results(RESULTS / f"{preset.name}.jsonl")
    if not results.runs:
        pytest.skip("not run yet")
    text = (RESULTS / f"{preset.name}.txt").read_text(encoding="utf-8")
    assert text.splitlines() == tables(preset, results)
    table = (RESULTS / f"{preset.name}.md").read_text(encoding="utf-8")
    assert table.splitlines() == markdown(preset, results)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_results_are_of_the_preset_as_it_is(preset: Preset) -> None:
    methods = {method.name: method for method in preset.methods}
    for run in read_results(RESULTS / f"{preset.name}.jsonl").runs:
        method, config = methods[run["method"]], config_in_todays_words(run)
        winners = {key: config[key] for key in method.grid}
        asked = preset.run_config(method.with_values(winners), run["seed"])
        if run["config"].keys() == _UPLOAD:
            asked = {key: asked[key] for key in {*_UPLOAD, "avif-speed"} & asked.keys()}
            assert config == asked
        assert {key: config[key] for key in asked} == asked


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_finished_runs_are_not_repeated_whatever_code_made_them(
    preset: Preset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sim.compare.job.read_results", cache(read_results))
    path = RESULTS / f"{preset.name}.jsonl"
    methods = {method.name: method for method in preset.methods}
    for run in read_results(path).runs:
        for seed in (None, run["seed"]):
            assert not Job(preset, methods[run["method"]], seed, ROOT, path, "").needed()


# A block of a text: its name, and its lines.
_BLOCK = re.compile(r"<!-- rows of (\S+) -->\n(.*?)<!-- end of rows -->", re.S)
TEXTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(name, block.splitlines(), id=f"{path.name}-{name}")
    for path in TEXTS
    for name, block in _BLOCK.findall(path.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize(("name", "lines"), BLOCKS)
def test_a_block_of_rows_is_of_the_table(name: str, lines: list[str]) -> None:
    table = iter((RESULTS / f"{name}.md").read_text(encoding="utf-8").splitlines())
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        is_header = following.startswith("|---")
        assert is_header or line in table, f"not a line of {name}.md, or not in its order: {line}"


def test_every_block_of_rows_is_found() -> None:
    starts = sum(path.read_text(encoding="utf-8").count("<!-- rows of ") for path in TEXTS)
    assert starts == len(BLOCKS)


def test_readme_has_the_headline_of_the_raw_results() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_headline(text) == text


@pytest.mark.parametrize("name", DATA)
def test_tables_of_the_frontiers(name: str) -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    points = read_frontier(RESULTS, name)
    expected = {"frontier": markdown_points(settled(means(points))) if points else []}
    if levers_table(DATA[name], points)[1]:
        expected["levers"] = markdown_levers(DATA[name], points)
    for kind, lines in expected.items():
        _, _, rest = page.partition(f"<!-- {kind}: {name} -->\n")
        assert rest.split("\n\n")[0].splitlines() == lines


@pytest.mark.parametrize("dataset", ["cifar10", "mnist5k"])
def test_tables_of_scouts(dataset: str) -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    lines = page.split(f"<!-- scouts: {dataset} -->\n")[1].split("\n\n")[0].splitlines()
    expected = rows(read_points(RESULTS / f"scout-{dataset}.jsonl"))
    assert lines[2:] == [f"| {' | '.join(row)} |" for row in expected]
