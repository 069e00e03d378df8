"""Committed tables are what the raw results beside them give."""

import re
from pathlib import Path

import pytest

from sim.compare.markdown import markdown
from sim.compare.presets import PRESETS, Preset
from sim.compare.report import tables
from sim.compare.results import read_results

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "sim" / "results"
HEADLINE = "cifar10-resnet18"


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
        method = methods[run["method"]]
        if not method.upload:
            winners = {key: run["config"][key] for key in method.grid}
            asked = preset.run_config(method.with_values(winners), run["seed"])
            assert {key: run["config"][key] for key in asked} == asked


def test_readme_selects_rows_of_the_table() -> None:
    name = "fashion-mnist"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (selected,) = re.findall(rf"<!-- rows of {name} -->\n(.*?)<!-- end of rows -->", readme, re.S)
    table = iter((RESULTS / f"{name}.md").read_text(encoding="utf-8").splitlines())
    for line in selected.splitlines():
        assert line in table, f"not a line of {name}.md, or not in its order: {line}"


def test_readme_has_the_headline_table() -> None:
    table = (RESULTS / f"{HEADLINE}.md").read_text(encoding="utf-8")
    assert table in (ROOT / "README.md").read_text(encoding="utf-8")
