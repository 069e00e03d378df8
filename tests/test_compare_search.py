"""Search over hyperparameters, trials in one process, and how jobs are done."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from instant_job import InstantJob

from fl_app.config import RunConfig
from sim.__main__ import main
from sim.compare.job import Job
from sim.compare.presets import OURS, Method, Preset
from sim.compare.results import append_rows
from sim.compare.runner import compare
from sim.compare.search import beyond, search
from sim.compare.trial import accuracy_in_process
from sim.in_process import train_in_process
from sim.launcher import RunError, launch
from sim.run_config import ConfigValue, read_defaults

APP = Path(__file__).parents[1]
DIGITS = {"dataset": "mnist5k", "model": "logistic", "max-train-samples": 200}


@pytest.mark.parametrize(
    ("found", "following"),
    [
        ({0.05: 0.3, 0.1: 0.2, 0.2: 0.1}, [0.025]),
        ({0.05: 0.1, 0.1: 0.2, 0.2: 0.3}, [0.4]),
        ({0.05: 0.1, 0.1: 0.3, 0.2: 0.2}, []),
        ({0.1: 0.3}, []),
        ({2: 0.3, 4: 0.2}, []),
    ],
)
def test_search_goes_on_beyond_the_end(
    found: dict[ConfigValue, float], following: list[float]
) -> None:
    assert beyond(found) == following


def test_search_tries_one_key_at_a_time_and_then_larger_values() -> None:
    tried = []

    def trial(values: dict[str, ConfigValue], final: bool) -> float:
        tried.append((values, final))
        best = 0.4 if final else 0.2  # what is best at first is not best at the end
        return -abs(float(values["a"]) - best) - (values.get("b") != "good")

    grid = {"a": (0.1, 0.2, 0.4, 0.8, 1.6), "b": ("bad", "good")}
    assert search(grid, trial) == {"a": 0.4, "b": "good"}
    assert tried == [
        *(({"a": value}, False) for value in grid["a"]),
        *(({"a": value}, True) for value in (0.2, 0.4, 0.8)),
        ({"a": 0.4, "b": "bad"}, False), ({"a": 0.4, "b": "good"}, False),
    ]  # fmt: skip


def test_search_stops_three_values_beyond_its_grid() -> None:
    tried: list[ConfigValue] = []

    def trial(values: dict[str, ConfigValue], final: bool) -> float:
        if not final:
            tried.append(values["a"])
        return float(values["a"])

    assert search({"a": (1.0, 2.0)}, trial) == {"a": 16.0}
    assert tried == [1.0, 2.0, 4.0, 8.0, 16.0]


@pytest.mark.simulation
@pytest.mark.slow
def test_trial_ends_as_a_run_on_the_engine_does(tmp_path: Path) -> None:
    config: dict[str, ConfigValue] = {
        **DIGITS, "model": "small-resnet", "strategy": "gradient", "compressor": "top-k",
        "batch-size": 16, "num-rounds": 5, "eval-every": 5, "threads": 1, "seed": 3,
    }  # fmt: skip
    launch(APP, config | {"out-dir": str(tmp_path)}, 3)
    result = json.loads((tmp_path / "result.json").read_text())
    assert accuracy_in_process(config, APP, 3) == (5, result["accuracy"])


def preset(*methods: Method) -> Preset:
    return Preset("tiny", "Uploads", DIGITS, methods, 4, 16, 1, tuning_steps=2, clients=2)


def upload(name: str, codec: str, **options: int) -> Method:
    return Method(name, {**OURS[0].config, "codec": codec, **options})


@pytest.fixture
def instant_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.compare.runner.Job", InstantJob)


@pytest.mark.usefixtures("instant_jobs")
def test_jobs_side_by_side_are_done_once(tmp_path: Path) -> None:
    uploads = [upload(f"upload {quality}", "jpeg", quality=quality) for quality in (10, 90)]
    lines: list[str] = []
    results = compare(preset(*uploads), APP, tmp_path, "", seeds=2, jobs=2, echo=lines.append)
    assert {(run["method"], run["seed"]) for run in results.runs} == {
        ("upload 10", 0), ("upload 10", 1), ("upload 90", 0), ("upload 90", 1)
    }  # fmt: skip
    assert [line.split(" (")[0] for line in lines[:2]] == [
        "[1/4] upload 10, seed 0", "[2/4] upload 90, seed 0"
    ]  # fmt: skip
    before = time.perf_counter()
    again = compare(preset(*uploads), APP, tmp_path, "", seeds=2, jobs=2, echo=lines.append)
    assert again == results and len(lines) == 4
    assert time.perf_counter() - before < 1  # nothing was started


@pytest.mark.simulation
@pytest.mark.slow
def test_uploads_and_ours_share_everything_but_the_codec(tmp_path: Path) -> None:
    methods = (OURS[0], upload("upload", "jpeg", quality=20))
    results = compare(preset(*methods), APP, tmp_path, "", seeds=1, jobs=2, echo=lambda _: None)
    ours, other = sorted(results.runs, key=lambda run: str(run["method"]))
    places = {"state-dir"}  # each run's devices remember in its own folder
    differ = {key for key, value in ours["config"].items() if other["config"][key] != value}
    assert ours["config"].keys() == other["config"].keys()
    assert differ - places == {"codec", "quality"}
    assert ours["samples_sent"] == other["samples_sent"] == 200
    assert ours["clients"] == other["clients"] == 2
    told = {"codec choice"}  # ours is codec auto
    assert ours["sections"].keys() - told == other["sections"].keys()
    assert not ours["failures"] and not other["failures"]
    for run in (ours, other):
        name = run["method"]
        points = [point for point in results.points if point["method"] == name]
        assert [point["step"] for point in points] == [0, 4]
        assert [point["uplink_bytes"] > 0 for point in points] == [False, True]
        assert points[-1]["uplink_bytes"] >= sum(run["sections"].values())
        assert points[-1]["downlink_bytes"] > 0


def test_lossless_codecs_deliver_the_same_images() -> None:
    accuracies, sizes = {}, {}
    for codec in ("png", "webp-lossless"):
        method = upload(codec, codec)
        values = {**read_defaults(APP), **preset(method).run_config(method, 0)}
        strategy, test = train_in_process(RunConfig.from_run_config(values), 2)
        _, accuracies[codec] = strategy.server_model.evaluate(test.samples, test.labels, high=255)
        sizes[codec] = strategy.ledger.uplink_bytes
    assert accuracies["png"] == accuracies["webp-lossless"]
    assert sizes["webp-lossless"] < sizes["png"]


def test_a_codec_that_is_not_installed_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sim.compare.runner.JPEG_XL_PACKAGE", "no_such_package")
    lines: list[str] = []
    methods = [
        upload("JPEG XL", "jpeg-xl", quality=10),
        upload("JPEG XL lossless", "jpeg-xl-lossless"),
    ]
    results = compare(preset(*methods), APP, tmp_path, "", echo=lines.append)
    assert lines == [
        "left out: JPEG XL, which needs pip install no_such_package",
        "left out: JPEG XL lossless, which needs pip install no_such_package",
    ]
    assert results.runs == []


def test_trials_and_message_of_the_file_are_not_repeated(tmp_path: Path) -> None:
    baseline = Method(
        "baseline",
        {"strategy": "gradient", "compressor": "top-k"},
        grid={"learning-rate": (0.1, 0.2)},
    )
    path = tmp_path / "tiny.jsonl"
    found = {
        (0.1, 2): 0.2,
        (0.2, 2): 0.3,
        (0.4, 2): 0.4,
        (0.8, 2): 0.1,
        (0.8, 6): 0.5,
        (0.4, 6): 0.6,
    }
    trial = {"kind": "trial", "method": "baseline"}
    rows = [
        {**trial, "config": {"learning-rate": rate}, "steps": steps, "accuracy": accuracy}
        for (rate, steps), accuracy in found.items()
    ]
    append_rows(path, [{"kind": "size", "method": "baseline"}, *rows])
    run = {"kind": "run", "method": "baseline", "seed": 0, "config": {"learning-rate": 0.4}}
    append_rows(path, [run])
    lines: list[str] = []
    compare(preset(baseline), APP, tmp_path, "", seeds=1, echo=lines.append)
    assert lines == []
    job = Job(preset(baseline), baseline, 0, APP, path, "")
    assert not job.needed()
    append_rows(path, [{**run, "config": {"learning-rate": 0.2}}])
    assert job.needed()  # 0.4 has won
    assert replace(job, seed=1).needed()


def test_a_method_that_does_not_compress_is_not_prepared_again(tmp_path: Path) -> None:
    plain = Method("plain", {"strategy": "fedavg", "compressor": "none", "local-steps": 2})
    append_rows(
        tmp_path / "tiny.jsonl", [{"kind": "run", "method": "plain", "seed": 0, "config": {}}]
    )
    lines: list[str] = []
    compare(preset(plain), APP, tmp_path, "", seeds=1, echo=lines.append)
    assert lines == []


def test_trials_take_the_same_steps_whatever_the_local_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config: dict[str, ConfigValue] = {"strategy": "fedavg", "compressor": "none", "local-steps": 4}
    baseline = Method("baseline", {**config, "model": "small-resnet"}, grid={"local-steps": (4, 2)})
    Job(preset(baseline), baseline, None, APP, tmp_path / "tiny.jsonl", "").perform()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1] for line in lines] == ["local-steps = 4", "local-steps = 2"]
    assert all(line.endswith("% after 4 steps") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "top-k"], "--only: 'top-k' is no method of smoke; legal: 'ours, replay', "),
        (["--report"], "leave out --report"),
        (["--preset", "cifar10-resnet20"], "cifar10: no cifar-10-batches-py/data_batch_1 or"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "--preset", "smoke", "--out", str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("instant_jobs")
def test_a_job_that_fails_ends_the_others_and_keeps_what_is_done(tmp_path: Path) -> None:
    good, bad = upload("upload good", "jpeg", quality=10), upload("bad", "fails")
    with pytest.raises(RunError, match="bad, seed 0 failed"):
        compare(preset(bad, good), APP, tmp_path, "", seeds=1, jobs=2, echo=lambda _: None)
    results = compare(preset(good), APP, tmp_path, "", seeds=1, echo=lambda _: None)
    assert [run["method"] for run in results.runs] == ["upload good"]
