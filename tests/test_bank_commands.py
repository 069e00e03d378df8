"""`python -m sim bank` and `train`: what a bank holds, other formats, models trained on it."""

import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from bank_files import add, floats, payload, tags_of
from PIL import Image
from safetensors.torch import load_file
from torchrun import torchrun

from codec import CodecOptions, SampleSpec, encode_samples
from fl_app.config import RunConfig
from fl_app.data import load
from sim.__main__ import main
from sim.bank_training import POINTS, Point, grid_of, summary
from sim.cli.options import APP
from sim.in_process import train_in_process
from sim.run_config import RunConfigError
from strategies import QuantizedDataReplay
from strategies.sample_bank import BankError, SampleBank
from strategies.sample_bank.export import export
from strategies.sample_bank.integrity import compact, inventory

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Undo what `main` does to the signals of this process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    return call


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a bank of 18 samples, and of 8 that came twice."""
    place = tmp_path / "bank.sqlite"
    with SampleBank(path=place) as bank:
        bank.tell_class_names([f"kind {k}" for k in range(10)])
        one, two = payload(0), payload(1)
        known = {"strategy": "Replay", "node_id": 2**64 - 2, "content_bytes": 300}
        add(bank, [one, two], fingerprints=tags_of(one, 8, bank) + tags_of(two, 8, bank), **known)
        again = payload(1, codec=CodecOptions("png"))
        add(bank, [again], client=1, fingerprints=tags_of(two, 8, bank), content_bytes=50)
        part = payload(2, 8), payload(0, codec=CodecOptions(step=0.2))
        tags = tags_of(part[0], 8, bank)[:48] + tags_of(one, 8, bank)[:16]
        add(bank, [part[0]], client=2, fingerprints=tags)
    return place


def test_a_whole_bank_is_told_to_be_so(path: Path, run: Run) -> None:
    code, out, _ = run("bank", "check", path)
    assert code == 0
    assert "samples: 20, and 6 duplicates dropped" in out
    assert "replies: 3, of 2 nodes (3 clients), by Replay" in out
    assert "paid for: 350 B content" in out
    assert "whole: every checksum agrees and all 4 payloads decode" in out
    code, out, _ = run("bank", "show", path)
    assert code == 0 and "uint8 1x4x4, lossless  20" in out and "kind 3" in out
    found = inventory(path, thorough=False)
    assert sum(found.classes.values()) == found.samples == 20
    assert out.startswith(f"bank {found.id.hex()}: {path}")


def test_damage_is_named_and_the_rest_counted(path: Path, run: Run) -> None:
    data = payload(2, 8).to_bytes()
    whole = path.read_bytes()
    at = whole.index(data[-20:])
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    code, out, err = run("bank", "check", path)
    assert code == 1
    assert "damaged: payload 4 is not what was written" in out
    assert "1 damaged; 12 samples are whole" in err
    for other in ("show", "export"):
        more = ["--to", path.parent / "to"] if other == "export" else []
        code, out, err = run("bank", other, path, *more)
        assert "payload 4 is not what was written" in out + err


def test_compaction_removes_what_is_nothing_but_duplicates(path: Path, run: Run) -> None:
    before = SampleBank.open(path)
    code, out, _ = run("bank", "compact", path)
    assert code == 0 and "1 payloads removed" in out
    found = inventory(path, thorough=True)
    assert (found.payloads, found.samples, found.replies) == (3, 20, 3) and not found.damaged
    after = SampleBank.open(path)
    assert np.array_equal(before.samples, after.samples)
    with SampleBank(path=path) as bank:
        assert add(bank, [payload(1, codec=CodecOptions("png"))]).known
        with pytest.raises(BankError, match="is written to by process"):
            compact(path)


def test_minibatches_are_timed_in_memory_and_on_disk(path: Path, run: Run) -> None:
    before = path.read_bytes()
    code, out, _ = run("bank", "speed", path, "--batch-size", 4, "--epochs", 2)
    assert code == 0 and out.startswith("20 samples, 320 B decoded in ")
    names = [
        *("bank, in memory", "bank, 1.2 times the limit", "bank, 3 times the limit"),
        *("DataLoader, in memory", "DataLoader, on disk"),
    ]
    for name in names:
        (line,) = [line for line in out.splitlines() if name in line]
        median, least, most = map(float, line.split()[-3:])
        assert 0 <= least <= median <= most
    assert path.read_bytes() == before


def test_what_is_no_bank_ends_the_command(tmp_path: Path, run: Run) -> None:
    code, _, err = run("bank", "check", tmp_path / "none")
    assert code == 1 and "there is no bank" in err
    code, _, err = run("bank", "export", tmp_path / "none", "--to", tmp_path, "--format", "csv")
    assert code == 1 and "--format = 'csv' must be one of folder, npz, parquet, datasets" in err


def test_pictures_become_a_folder_for_each_class(path: Path, run: Run, tmp_path: Path) -> None:
    dataset = SampleBank.open(path)
    code, out, _ = run("bank", "export", path, "--to", tmp_path / "to")
    assert code == 0 and "20 samples" in out
    files = sorted((tmp_path / "to").rglob("*.png"), key=lambda file: file.name)
    assert len(files) == 20
    for k, file in enumerate(files):
        assert file.parent.name == f"kind {dataset.targets[k]}"
        assert np.array_equal(np.asarray(Image.open(file)), dataset.samples[k, 0])
    code, _, err = run("bank", "export", path, "--to", tmp_path / "to")
    assert code == 1 and "is there already" in err


def test_arrays_tables_and_data_sets_hold_the_same(path: Path, tmp_path: Path) -> None:
    import datasets
    from pyarrow import parquet

    dataset = SampleBank.open(path)
    with np.load(export(dataset, tmp_path, "npz")) as arrays:
        assert np.array_equal(arrays["samples"], dataset.samples)
        assert np.array_equal(arrays["targets"], dataset.targets)
        assert arrays["range"].tolist() == [0, 255] and arrays["class_names"][1] == "kind 1"
    table = parquet.read_table(export(dataset, tmp_path, "parquet"))
    told = json.loads(table.schema.metadata[b"quantized-data"])
    samples = np.array(table["sample"].to_pylist(), np.uint8).reshape(-1, *told["shape"])
    assert np.array_equal(samples, dataset.samples)
    assert table["target"].to_pylist() == dataset.targets.tolist()
    made = datasets.load_from_disk(str(export(dataset, tmp_path, "datasets")))
    assert np.array_equal(np.stack([np.asarray(x) for x in made["image"]]), dataset.samples[:, 0])
    assert made.features["label"].int2str(made["label"][0]) == f"kind {dataset.targets[0]}"
    assert sorted(path.name for path in tmp_path.glob("bank*")) == [
        "bank", "bank.npz", "bank.parquet", "bank.sqlite", "bank.sqlite.lock",
    ]  # fmt: skip
    with pytest.raises(BankError, match=r"bank\.npz is there already"):
        export(dataset, tmp_path, "npz")


def test_floats_and_vectors_are_exported_too(tmp_path: Path) -> None:
    import datasets
    from pyarrow import parquet

    rng = np.random.default_rng(0)
    spec = SampleSpec((5,), "float32", 0, 1, target_size=2, codec=CodecOptions("lossless"))
    values, targets = rng.random((7, 5), np.float32), rng.random((7, 2), np.float32)
    with SampleBank(path=tmp_path / "table") as bank:
        add(bank, [encode_samples(values, targets, spec)])
    dataset = SampleBank.open(tmp_path / "table")
    for kind in ("folder", "datasets", "parquet"):
        if kind == "folder":
            with pytest.raises(BankError, match="needs classes"):
                export(dataset, tmp_path / "to", kind)
            continue
        place = export(dataset, tmp_path / "to", kind)
        read = (
            parquet.read_table(place).to_pydict()
            if kind == "parquet"
            else datasets.load_from_disk(str(place)).to_dict()
        )
        assert np.array_equal(np.array(read["sample"], np.float32), values)
        assert np.array_equal(np.array(read["target"], np.float32), targets)
    with SampleBank(path=tmp_path / "floats") as bank:
        add(bank, [floats(0)])
    with pytest.raises(BankError, match="needs 8-bit pictures"):
        export(SampleBank.open(tmp_path / "floats"), tmp_path / "pictures", "folder")


@pytest.mark.parametrize(("kind", "package"), [("parquet", "pyarrow"), ("datasets", "datasets")])
def test_a_missing_package_is_named(
    path: Path, kind: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BankError, match=f"needs a package: pip install {package}"):
        export(SampleBank.open(path), path.parent / "to", kind)


# Training


CONFIG = RunConfig(
    model="logistic", max_train_samples=300, num_rounds=2, server_steps=15, samples_per_round=0,
    learning_rate=0.1, threads=1,
)  # fmt: skip
PAIRS = ("model=logistic", "num-rounds=2", "server-steps=15", "learning-rate=0.1", "threads=1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[QuantizedDataReplay, Path]:
    """Return a finished run, and a bank that holds what it received."""
    strategy, _ = train_in_process(CONFIG, clients=3)
    assert isinstance(strategy, QuantizedDataReplay)
    place = tmp_path_factory.mktemp("run") / "digits.sqlite"
    with SampleBank(path=place, scale=strategy.request.scale) as bank:
        for block in strategy.bank._blocks:
            assert isinstance(block.data, bytes)
            bank.add_payload(block.data)
    return strategy, place


def test_it_trains_as_the_run_did_for_no_byte(
    trained: tuple[QuantizedDataReplay, Path], run: Run, tmp_path: Path
) -> None:
    strategy, place = trained
    folder = tmp_path / "run"
    code, out, _ = run("train", "--bank", place, "--config", *PAIRS, "--out", folder)
    assert code == 0
    assert "0 B on the wire for 1 training" in out and "round 2/2: accuracy" in out
    state = load_file(folder / "model.safetensors")
    for name, parameter in strategy.model.state_dict().items():
        assert torch.equal(parameter, state[name])
    result = json.loads((folder / "result.json").read_text())
    assert result["uplink_bytes"] == result["downlink_bytes"] == 0
    assert result["steps"] == 30 and result["bank"]["samples"] == 300
    rounds = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert [row["uplink_bytes"] for row in rounds] == [0, 0]
    assert rounds[-1]["accuracy"] == result["accuracy"]
    code, _, err = run("train", "--bank", place, "--config", *PAIRS, "--out", folder)
    assert code == 2 and "add --overwrite" in err
    code, out, _ = run("train", "--bank", place, "--config", *PAIRS, "--out", folder, "--overwrite")
    assert code == 0 and "round 2/2" in out


@pytest.mark.slow
def test_processes_of_torchrun_train_as_one(
    trained: tuple[QuantizedDataReplay, Path], tmp_path: Path
) -> None:
    strategy, place = trained
    asked = ("-m", "sim", "train", "--bank", place, "--config", *PAIRS, "--out", tmp_path)
    out = torchrun(2, *asked)
    assert out.count("2 processes take a part of each minibatch") == out.count("round 2/2") == 1
    state = load_file(tmp_path / "model.safetensors")
    for name, parameter in strategy.model.state_dict().items():
        # Rounding, 1e-7 after 3 steps, grows with every step of this learning rate.
        assert (parameter - state[name]).abs().max() < 1e-3, name
    assert json.loads((tmp_path / "result.json").read_text())["steps"] == 30
    asked = (*asked[:-2], "--seeds", 2, "--out", tmp_path / "several")
    assert torchrun(2, *asked).count("round 2/2") == 2
    assert torchrun(2, *asked).count("round 2/2") == 0  # both are known


def test_a_search_goes_on_where_it_was_left_off(
    trained: tuple[QuantizedDataReplay, Path], run: Run, tmp_path: Path
) -> None:
    asked = ("train", "--bank", trained[1], "--config", *PAIRS, "--seeds", 2, "--out", tmp_path)
    grid = ("--grid", "learning-rate=0.01,0.1", "optimizer=sgd,adamw")
    code, out, _ = run(*asked, *grid)
    assert code == 0 and "training 8 of 8: learning-rate=0.1,optimizer=adamw,seed=1" in out
    lines = (tmp_path / POINTS).read_text().splitlines()
    assert len(lines) == 8 and "0 B on the wire for 8 trainings" in out
    best = max(
        (json.loads(line)["point"] for line in lines), key=lambda point: float(point["accuracy"])
    )
    assert f"best: learning-rate={best['values']['learning-rate']}" in out
    (tmp_path / POINTS).write_text("\n".join(lines[:5]) + "\n")  # killed after the fifth
    code, again, _ = run(*asked, *grid)
    assert code == 0 and again.count("training ") == 3
    assert [row.split()[:5] for row in again.splitlines() if row.startswith("learning")] == [
        row.split()[:5] for row in out.splitlines() if row.startswith("learning")
    ]
    assert (tmp_path / "learning-rate=0.01,optimizer=sgd,seed=0" / "rounds.jsonl").exists()


def test_a_training_that_diverges_is_a_row_of_the_table(
    trained: tuple[QuantizedDataReplay, Path], run: Run, tmp_path: Path
) -> None:
    code, out, _ = run(
        *("train", "--bank", trained[1], "--config", *PAIRS, "--out", tmp_path),
        *("--grid", "learning-rate=1e38,0.1"),
    )
    assert code == 0
    assert "diverged: " in out and "best: learning-rate=0.1" in out


def test_what_does_not_fit_the_bank_is_refused(
    trained: tuple[QuantizedDataReplay, Path], path: Path, run: Run, tmp_path: Path
) -> None:
    code, _, err = run("train", "--bank", path, "--out", tmp_path / "a")
    assert code == 2 and "samples of shape (1, 4, 4) of 10 classes; dataset = 'mnist5k'" in err
    code, _, err = run("train", "--bank", trained[1], "--config", "scale=none")
    assert code == 2 and "scale = 'none' must be 'auto', or 'unit' as in the bank" in err
    code, _, err = run("train", "--bank", trained[1], "--config", "strategy=streaming")
    assert code == 2 and "must be 'replay'" in err
    code, _, err = run("train", "--bank", tmp_path / "none", "--out", tmp_path / "b")
    assert code == 1 and "there is no bank" in err
    for axes, message in (
        (["seed"], "must have the form"),
        (["step=1,"], "must have the form"),
        (["sted=1"], "no key 'sted'"),
        (["step=a"], "must be a number"),
        (["step=1", "step=2"], "step twice"),
    ):
        with pytest.raises(RunConfigError, match=message):
            grid_of(APP, axes)


def test_the_bank_learns_what_the_images_teach(
    trained: tuple[QuantizedDataReplay, Path],
) -> None:
    dataset, test = SampleBank.open(trained[1]), load("mnist5k", "test")
    assert len(dataset) == 300 and dataset.samples.shape[1:] == test.samples.shape[1:]
    assert dataset.scale == "unit" and dataset[0][0].max() <= 1


def test_the_table_gives_mean_and_spread() -> None:
    points = [Point({"step": 1}, seed, 0.5 + 0.1 * seed, 1.0, 10, 2.0) for seed in range(2)] + [
        Point({"step": 2}, 0, None, None, 3, 1.0, problem="loss is inf")
    ]
    lines = summary(points, paid=1000)
    assert lines[1].split() == ["step=1", "55.00", "7.07", "1.0000", "10", "4", "0", "B"]
    assert "diverged" in lines[2] and lines[3] == "best: step=1, 55.00 %"
    assert lines[4].endswith("paid for once, with 1.0 kB")
