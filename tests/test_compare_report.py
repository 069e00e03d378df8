"""Tables of a comparison from raw results."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from codec.samples.registry import SAMPLE_CODECS
from sim.compare.codecs import against_codecs
from sim.compare.markdown import markdown
from sim.compare.points import both_ways, common_accuracy, mean_points, needed_bytes, uplink
from sim.compare.presets import OURS, PRESETS, Method, Preset
from sim.compare.report import bytes_to_reach, report
from sim.compare.results import read_results
from sim.compare.sizes import message_size

APP = Path(__file__).parents[1]

UPLOAD = Method("baseline", {"codec": "jpeg", "quality": 20})
PRESET = Preset("tiny", "Two methods", {}, (Method("ours"), UPLOAD), 20, 8, 2)


def write(path: Path, accuracies: dict[str, list[list[float]]], size: dict[str, int]) -> None:
    rows: list[dict[str, Any]] = []
    for method, seeds in accuracies.items():
        for seed, points in enumerate(seeds):
            named = {"method": method, "seed": seed}
            seconds = {"device_seconds": 1.0, "server_seconds": 2.0, "wall_seconds": 4.0}
            rows.append({"kind": "run", **named, **seconds, "samples_sent": 10})
            rows += [
                {
                    "kind": "point",
                    **named,
                    "step": 10 * (k + 1),
                    "accuracy": accuracy,
                    "uplink_bytes": size[method] * (k + 1),
                    "downlink_bytes": 5,
                }
                for k, accuracy in enumerate(points)
            ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    accuracies = {"ours": [[0.5, 0.9], [0.7, 0.9]], "baseline": [[0.6, 0.8], [0.5, 0.8]]}
    write(tmp_path / "tiny.jsonl", accuracies, {"ours": 100, "baseline": 5000})
    return tmp_path


def test_common_accuracy_is_what_the_weakest_reaches(folder: Path) -> None:
    assert common_accuracy(PRESET, read_results(folder / "tiny.jsonl")) == pytest.approx(0.8)


def test_bytes_are_those_of_the_first_evaluation_that_reached_it(folder: Path) -> None:
    results = read_results(folder / "tiny.jsonl")
    # Accuracies of two seeds: 50 and 70 %, then 90 % twice.
    assert needed_bytes(results, "ours", 0.59, uplink) == 100
    assert needed_bytes(results, "ours", 0.61, uplink) == 200
    assert needed_bytes(results, "baseline", 0.8, uplink) == 10000
    assert needed_bytes(results, "baseline", 0.85, uplink) is None
    assert any("50x" in line for line in bytes_to_reach(PRESET, results))


def test_a_baseline_s_uplink_stands_beside_both_our_directions(folder: Path) -> None:
    results = read_results(folder / "tiny.jsonl")
    ours = needed_bytes(results, "ours", 0.8, both_ways)
    assert ours == pytest.approx(205)
    baseline = next(line for line in bytes_to_reach(PRESET, results) if line.startswith("baseline"))
    assert baseline.endswith(f"0.010 MB ({10000 / ours:.3g}x)")


def test_codec_beside_our_coarsest_step_of_equal_accuracy(folder: Path) -> None:
    path = folder / "tiny.jsonl"
    accuracies = {"ours": [[0.5, 0.9]], "coarse": [[0.5, 0.85]], "baseline": [[0.6, 0.852]]}
    write(path, accuracies, {"ours": 100, "coarse": 40, "baseline": 5000})
    preset = replace(PRESET, methods=(Method("ours"), Method("coarse"), PRESET.methods[1]))
    rows = [line.split() for line in against_codecs(preset, read_results(path))[1:]]
    assert rows == [
        ["ours", "20.0", "90.00"],
        ["coarse", "8.0", "85.00"],
        ["baseline", "1000.0", "85.20", "125.00", "coarse"],
    ]
    results = read_results(path)
    for point in results.points:  # the baseline is now better than both of ours
        point["accuracy"] += 0.06 if point["method"] == "baseline" else 0
    assert against_codecs(preset, results)[-1].split() == ["baseline", "1000.0", "91.20", "none"]


def test_codecs_are_compared_on_the_seeds_that_both_have(folder: Path) -> None:
    path = folder / "tiny.jsonl"
    write(path, {"ours": [[0.5], [0.9]], "baseline": [[0.502]]}, {"ours": 100, "baseline": 5000})
    row = against_codecs(PRESET, read_results(path))[-1].split()
    assert row == ["baseline", "500.0", "50.20", "50.00", "ours"]  # 70 % is the mean of ours
    write(path, {"ours": [[0.5], [0.9]], "baseline": [[0.504]]}, {"ours": 100, "baseline": 5000})
    assert against_codecs(PRESET, read_results(path))[-1].split()[-1] == "none"


def test_markdown_has_ratios_at_the_common_and_at_the_best_accuracy(folder: Path) -> None:
    path = folder / "tiny.jsonl"
    accuracies = {"ours": [[0.5, 0.9]], "baseline": [[0.7, 0.95]], "weak": [[0.3, 0.4]]}
    write(path, accuracies, {"ours": 100, "baseline": 5000, "weak": 300})
    weak = Method("weak", {"strategy": "gradient"})
    preset = replace(PRESET, methods=(*PRESET.methods, weak))
    rows = [line.strip("| ").split(" | ") for line in markdown(preset, read_results(path))]
    assert rows[0][5:7] == ["uplink at 40.0 %", "up + down at 40.0 %"]
    # To 40 %: 100 of ours, 5000 of the baseline; to 90 %: 200 and 10,000. 5 down at each point.
    assert rows[3] == ["baseline", "1", "95.00", "0.01", "0.00", "50x", "48x", "50x (90.0 %)"]
    assert rows[-1] == ["baseline", "1000.0", "95.00", "none"]
    assert rows[4] == ["weak", "1", "40.00", "0.00", "0.00", "6.00x", "5.76x", "6.00x (40.0 %)"]


def test_an_interrupted_line_is_left_out(folder: Path) -> None:
    path = folder / "tiny.jsonl"
    whole = read_results(path)
    with path.open("a") as file:
        file.write('{"kind": "point", "meth')
    assert read_results(path) == whole
    assert whole.run("ours", 1) and not whole.run("ours", 2)


def test_of_two_runs_the_later_one_counts(folder: Path) -> None:
    path = folder / "tiny.jsonl"
    before = read_results(path)
    text = path.read_text()
    write(path, {"ours": [[0.4, 0.6]]}, {"ours": 7})
    path.write_text(text + path.read_text())
    after = read_results(path)
    assert len(after.runs) == len(before.runs) and len(after.points) == len(before.points)
    again = [point for point in after.points if (point["method"], point["seed"]) == ("ours", 0)]
    assert [(point["accuracy"], point["uplink_bytes"]) for point in again] == [(0.4, 7), (0.6, 14)]


def test_points_of_seeds_are_averaged_step_by_step(folder: Path) -> None:
    results = read_results(folder / "tiny.jsonl")
    results.points.remove(next(row for row in results.points if row["method"] == "ours"))
    assert [(row["step"], row["accuracy"]) for row in mean_points(results, "ours")] == [(20, 0.9)]


def test_report_writes_table_and_figures(folder: Path) -> None:
    lines = report(PRESET, read_results(folder / "tiny.jsonl"), folder)
    assert any(line.startswith("baseline") and "80.00 +/- 0.00" in line for line in lines)
    names = {"tiny.txt", "tiny.md", "tiny.png", "tiny_total.png"}
    assert names <= {file.name for file in folder.iterdir()}


def test_a_report_of_methods_without_ours_says_so(folder: Path) -> None:
    path = folder / "tiny.jsonl"
    write(path, {"baseline": [[0.7, 0.95]]}, {"baseline": 5000})
    lines = report(PRESET, read_results(path), folder)
    assert any(line.startswith("baseline") and "95.00" in line for line in lines)
    [row] = [line for line in (folder / "tiny.md").read_text().splitlines() if "0.01" in line]
    assert row.split(" | ")[5:7] == ["ours has not run"] * 2


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_every_method_takes_the_preset_s_steps(preset: Preset) -> None:
    assert len({method.name for method in preset.methods}) == len(preset.methods)
    for method in preset.methods:
        config = preset.run_config(method, 3)
        strategy = config.get("strategy", "replay")
        per_round = {"replay": "server-steps", "fedavg": "local-steps"}.get(str(strategy), "")
        steps = int(config["num-rounds"]) * int(config.get(per_round, 1))
        assert steps == preset.steps
        assert config["seed"] == 3


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_an_upload_is_our_replay_with_another_codec(preset: Preset) -> None:
    ours = preset.run_config(OURS[0], 3)
    uploads = [method for method in preset.methods if method.is_image_codec]
    assert [method.name for method in preset.methods if method.name.startswith("upload")] == [
        method.name for method in uploads
    ]
    for method in uploads:
        config = preset.run_config(method, 3)
        differ = {key for key in config if config[key] != ours.get(key)}
        assert ours.keys() <= config.keys()
        codec = SAMPLE_CODECS[str(config["codec"])]
        knobs = {name.replace("_", "-") for name in codec.uses}
        assert differ == {"codec", *knobs}


def test_a_message_stands_beside_its_theoretical_size() -> None:
    preset = PRESETS["smoke"]
    sizes = {
        method.name: message_size(preset.run_config(method, 0), APP) for method in preset.methods
    }
    assert [name for name, size in sizes.items() if size] == [
        "QSGD, 2 bits",
        "FedAvg, int8 deltas",
    ]
    for size in sizes.values():
        if size:
            assert size["coordinates"] == 77754
            assert size["serialized_bytes"] <= 1.05 * size["textbook_bytes"]
            assert size["serialized_bytes"] == pytest.approx(size["entropy_bytes"], rel=0.05)


def test_report_shows_messages_and_searches(folder: Path) -> None:
    trial = {"kind": "trial", "method": "baseline"}
    rows = [
        {"kind": "size", "method": "baseline", "coordinates": 9, "serialized_bytes": 104,
         "textbook_bytes": 100.0, "entropy_bytes": 101.0},
        {**trial, "config": {"lr": 0.1}, "steps": 5, "accuracy": 0.3},
        {**trial, "config": {"lr": 0.2}, "steps": 5, "accuracy": 0.4},
        {**trial, "config": {"lr": 0.1}, "steps": 9, "accuracy": 0.39},
    ]  # fmt: skip
    path = folder / "tiny.jsonl"
    path.write_text(path.read_text() + "".join(json.dumps(row) + "\n" for row in rows))
    lines = report(PRESET, read_results(path), folder)
    assert any("104" in line and "1.040" in line and "1.030" in line for line in lines)
    assert "tuned (< is best)" in lines
    assert any(
        "5 steps: lr=0.1: 30.00 %, lr=0.2: 40.00 %; 9 steps: lr=0.1: 39.00 % <" in line
        for line in lines
    )


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_tuning_is_shorter_than_a_run(preset: Preset) -> None:
    for method in preset.methods:
        if method.grid:
            for final in (False, True):
                wanted = preset.trial_steps(method, final)
                config = preset.run_config(method, 0, wanted)
                local = int(config["local-steps"]) if config["strategy"] == "fedavg" else 1
                assert int(config["num-rounds"]) * local == wanted < preset.steps
