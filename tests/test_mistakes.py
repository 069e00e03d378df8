"""Mistakes that people make, and what they are told: one line that says what to do.

Those that can be known beforehand start nothing, take less than three seconds, and end the
command line with exit code 2.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from PIL import Image
from torch import nn

import clients
from codec import CodecOptions, Compression
from codec.messages import ReplayRequest, Request, StreamingRequest
from fl_app.config import RunConfig
from fl_app.data import DataError, load
from fl_app.partition import partitions
from fl_app.run_folder import RunFolder
from sim.__main__ import main
from sim.cli import checks, commands, results_folder
from sim.launcher import RunError, _cause
from strategies import QuantizedDataReplay, QuantizedDataStreaming
from strategies.baselines import CompressedFedAvg, GradientCompression
from strategies.client_words import client_words

ROOT = Path(__file__).parents[1]
SECONDS = 3.0


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Undo what `main` does to the signals of this process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with things to stumble over, where no run is ever started."""

    def launch(*_: object) -> None:
        raise AssertionError("a run was started")

    monkeypatch.setattr(commands, "launch", launch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "nested.toml").write_text("[codec]\nstep = 0.5\n")
    (tmp_path / "number.toml").write_text("majority-vote = 1\n")
    (tmp_path / "list.toml").write_text("seed = [1, 2]\n")
    (tmp_path / "broken.toml").write_text("seed 1\n")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    held = tmp_path / "held"
    held.mkdir()
    (held / "result.json").write_text("{}")
    _images(tmp_path / "one" / "train", ["cat"], np.uint8)
    _images(tmp_path / "deep" / "train", ["cat", "dog"], np.uint16)
    (tmp_path / "empty" / "train" / "cat").mkdir(parents=True)
    return tmp_path


def _images(folder: Path, names: list[str], dtype: type) -> None:
    pixels = (np.arange(64).reshape(8, 8) * 4).astype(dtype)
    for name in names:
        (folder / name).mkdir(parents=True)
        Image.fromarray(pixels).save(folder / name / "a.png")


def assert_one_line(text: str, *told: str) -> None:
    assert text.count("\n") == 0, text
    assert "Traceback" not in text
    for part in told:
        assert part in text


class Mistake(NamedTuple):
    """Arguments of ``sim run``, and what must be told: the value, what is legal, what to do."""

    arguments: str
    told: tuple[str, ...]


FLAGS = [
    Mistake("--cleints 3", ("--cleints", "Did you mean '--clients'?", "--help")),
    Mistake("--clients ten", ("--clients", "'ten'", "integer", "--help")),
    Mistake("--clients 0", ("--clients", "0 is not in the range x>=1", "--help")),
    Mistake("--config", ("--config needs at least one value",)),
    Mistake("--config seed", ("'seed'", "KEY=VALUE", "as seed=1")),
    Mistake("--config =3", ("'=3'", "KEY=VALUE", "as seed=1")),
    Mistake("--config seed=1 seed=2", ("seed=1 and seed=2", "leave one of them out")),
    Mistake("--app nowhere", ("nowhere", "--app must be the folder of a Flower app")),
    Mistake("--app file.txt", ("file.txt is a file", "name a folder")),
]
FILES = [
    Mistake("--run-config absent.toml", ("absent.toml", "No such file", "KEY = VALUE")),
    Mistake("--run-config held", ("cannot read held", "Is a directory", "TOML file")),
    Mistake("--run-config broken.toml", ("broken.toml", "line 1", "KEY = VALUE")),
    Mistake("--run-config binary.toml", ("binary.toml", "byte 0xff", "must be TOML")),
    Mistake("--run-config nested.toml", ("'codec.step'", "not nested", "take 'step' out")),
    Mistake("--run-config number.toml", ("majority-vote = 1", "true or false")),
    Mistake("--run-config list.toml", ("seed = [1, 2]", "a whole number")),
]
VALUES = [
    Mistake("--config strategy=replayy", ("strategy = 'replayy'", "one of replay, streaming")),
    Mistake("--config lerning-rate=1", ("'lerning-rate'", "did you mean 'learning-rate'?")),
    Mistake("--config num-rounds=0", ("num-rounds = 0", ">= 1")),
    Mistake("--config num-rounds=2.5", ("num-rounds = '2.5'", "a whole number")),
    Mistake("--config majority-vote=1", ("majority-vote = '1'", "true or false")),
    Mistake("--config keep-rate=0,5", ("keep-rate = '0,5'", "a number")),
    Mistake("--config keep-rate=1.5", ("keep-rate = 1.5", "in (0, 1]")),
    Mistake("--config learning-rate=nan", ("learning-rate = nan", "> 0")),
    Mistake("--config learning-rate=inf", ("learning-rate = inf", "> 0")),
    Mistake("--config seed=-1", ("seed = -1", "in [0, 4294967295]")),
    Mistake("--config seed=99999999999999999999", ("seed = 99999999999999999999", "64 bits")),
    Mistake("--config codec=avix", ("codec = 'avix'", "one of auto, dct")),
    Mistake("--config step=0", ("step = 0.0", "in [1e-05, 100]")),
    Mistake("--config model=resnet101", ("model = 'resnet101'", "one of auto, resnet18")),
    Mistake("--config dataset=mnist", ("dataset = 'mnist'", "one of mnist5k")),
    Mistake("--config image-size=100000", ("image-size = 100000", "in [1, 4096]")),
    Mistake("--config threads=-2", ("threads = -2", "in [0, 1024]")),
    Mistake("--config uplink-budget=-5", ("uplink-budget = -5", ">= 0")),
    Mistake("--config round-timeout=0", ("round-timeout = 0.0", "> 0")),
    Mistake("--config device=gpu", ("device = 'gpu'", "one of auto, cpu, cuda")),
    Mistake("--config device=cpu:0", ("device = 'cpu:0'", "one of auto, cpu, cuda")),
]
CONTRADICTIONS = [
    Mistake("--config server-steps=0", ("server-steps = 0", "set it to 1 or more")),
    Mistake(
        "--config strategy=streaming keep-rate=0.5",
        ("keep-rate = 0.5", "legal is 1.0", "or importance random"),
    ),
    Mistake(
        "--config refinement=qsgd",
        ("refinement = 'qsgd'", "strategy = 'streaming'", "set refinement = 'none'"),
    ),
    Mistake(
        "--config strategy=gradient majority-vote=true",
        ("majority-vote", "needs compressor sign", "'fp32'"),
    ),
    Mistake(
        "--config compressor=eden compressor-bits=7",
        ("compressor-bits = 7", "1, 2, 3 or 4, or below 1, for eden"),
    ),
    Mistake(
        "--config min-available-nodes=11",
        ("min-available-nodes = 11", "--clients 10", "lower it, or start --clients 11"),
    ),
    Mistake(
        "--clients 3 --config min-train-nodes=4",
        ("min-train-nodes = 4", "--clients 3", "lower it, or start --clients 4"),
    ),
    Mistake("--clients 4001", ("--clients 4001", "4000 training samples", "start fewer clients")),
    Mistake(
        "--clients 50 --config max-train-samples=40",
        ("--clients 50", "40 max-train-samples", "start fewer clients"),
    ),
]
DATA = [
    Mistake("--config dataset=cifar10 data-dir=held", ("'cifar10'", "held", "download=True")),
    Mistake("--config dataset=fashion-mnist data-dir=x", ("fashion-mnist", "/x", "[.gz]")),
    Mistake("--config dataset=imagefolder data-dir=x", ("/x/train", "train/<class>/*.jpg")),
    Mistake("--config dataset=imagefolder data-dir=empty", ("/empty/train", "no images (")),
    Mistake(
        "--config dataset=imagefolder data-dir=one",
        ("1 class", "at least 2", "a folder of its own"),
    ),
    Mistake(
        "--clients 2 --config dataset=imagefolder data-dir=deep codec=avif",
        ("codec = 'avif'", "uint8 images", "float32", "use codec = 'dct'"),
    ),
]
OUT = [
    Mistake("--out file.txt", ("--out", "file.txt is a file", "name another")),
    Mistake("--out file.txt/run", ("--out", "file.txt is a file", "name another")),
    Mistake("--config out-dir=file.txt", ("--out", "file.txt is a file", "name another")),
    Mistake("--out /proc/run", ("--out /proc/run", "can be written to", "name another")),
    Mistake("--out held", ("held", "result.json of another run", "add --overwrite")),
]
MISTAKES = [*FLAGS, *FILES, *VALUES, *CONTRADICTIONS, *DATA, *OUT]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.arguments)
def test_a_mistake_in_the_command_line_starts_nothing(
    mistake: Mistake, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = time.process_time()
    assert main(["run", *mistake.arguments.split()]) == 2
    assert time.process_time() - started < SECONDS
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert_one_line(output.err.removesuffix("\n"), *mistake.told)
    assert not (place / "runs").exists()


def told_by_run(arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["run", *arguments.split()]) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    return text.removesuffix("\n")


def test_a_cuda_device_that_is_not_there(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checks, "_cuda_devices", lambda: 2)
    told = ("device = 'cuda:2'", "one of the 2 CUDA devices", "leave it at 'auto'")
    assert_one_line(told_by_run("--config device=cuda:2", capsys), *told)


def test_a_codec_whose_package_is_missing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda _: None)
    told = ("codec = 'jpeg-xl'", "pip install imagecodecs", "such as 'jpeg'")
    assert_one_line(told_by_run("--config codec=jpeg-xl", capsys), *told)


def test_a_disk_that_is_almost_full(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(place)._replace(free=5_000_000)
    monkeypatch.setattr(results_folder.shutil, "disk_usage", lambda _: usage)
    told = ("new has 5 MB free", "needs 200 MB", "make room, or name another folder with --out")
    assert_one_line(told_by_run("--out new", capsys), *told)
    assert not (place / "new").exists()


def test_a_folder_in_use_by_another_command(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with results_folder.results_folder("shared", {}):
        told = ("shared is in use", f"process {os.getpid()}", "wait until it has ended, or name")
        assert_one_line(told_by_run("--out shared", capsys), *told)
    assert list((place / "shared").iterdir()) == []


def test_a_lock_that_a_killed_command_left_holds_nobody(place: Path) -> None:
    (place / "shared").mkdir()
    (place / "shared" / ".lock").write_text("12345\n")
    with results_folder.results_folder("shared", {}):
        pass
    assert not (place / "shared" / ".lock").exists()


def test_overwrite_replaces_the_results_and_nothing_else(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "launch", lambda *_: None)
    for name in ("rounds.jsonl", "notes.txt", "log.txt"):
        (place / "held" / name).write_text("old")
    assert main(["run", "--out", "held", "--overwrite"]) == 0
    assert {file.name for file in (place / "held").iterdir()} == {"notes.txt", "config.json"}
    assert "model" in (place / "held" / "config.json").read_text()  # of the new run


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("theory --out file.txt", ("file.txt is a file", "name a folder")),
        ("cost --data-dir nowhere --out new", ("nowhere", "cifar10", "download=True")),
        ("compare --preset smoke --only nobody", ("'nobody'", "legal: ")),
        (
            "central --config strategy=streaming importance=loss keep-rate=2",
            ("keep-rate = 2.0", "in (0, 1]"),
        ),
    ],
)
def test_the_other_commands_tell_it_in_one_line(
    arguments: str, told: tuple[str, ...], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments.split()) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert_one_line(error.removesuffix("\n"), *told)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--config", "strategy=replayy"], ("strategy = 'replayy'", "one of replay")),
        (["--config", "dataset=cifar10", "data-dir=nowhere"], ("nowhere", "download=True")),
    ],
)
def test_a_real_process_needs_no_torch_to_refuse(
    arguments: list[str], told: tuple[str, ...], tmp_path: Path
) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "sim", "run", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    imports, _, error = done.stderr.rpartition("error: ")
    assert done.returncode == 2
    assert_one_line(error.removesuffix("\n"), *told)
    modules = {line.rpartition("|")[2].strip() for line in imports.splitlines()}
    assert "fl_app.config" in modules
    assert not {"torch", "matplotlib", "datasets"} & modules


# The API


def _model() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3))


def _optimizer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def _replay(**options: Any) -> object:
    return QuantizedDataReplay(_model, _optimizer, **options)


def _streaming(**options: Any) -> object:
    return QuantizedDataStreaming(_model, _optimizer, **options)


IMAGES, LABELS = np.zeros((6, 1, 2, 2), np.uint8), np.array([0, 1, 2, 0, 1, 2])


def _answer(dataset: object, request: Request | None = None, **options: Any) -> Message:
    entries = (request or ReplayRequest(server_round=1)).to_entries()
    content = RecordDict({"config": ConfigRecord(entries)})
    message = Message(content, 1, MessageType.TRAIN)
    return clients.train(message, Context(1, 1, {}, RecordDict(), {}), dataset, **options)


def _pairs(sample: object, target: object) -> list[tuple[object, object]]:
    return [(sample, target)] * 3


API: dict[str, tuple[Callable[[], object], tuple[str, ...]]] = {
    "step": (lambda: CodecOptions(step=0), ("step = 0.0", "in [1e-05, 100]")),
    "codec": (lambda: CodecOptions("jpg"), ("codec = 'jpg'", "one of auto, dct")),
    "quality": (lambda: CodecOptions(quality=50.5), ("50.5", "a whole number, not float")),  # type: ignore[arg-type]
    "block": (lambda: CodecOptions(block=1), ("block = 1", "0 or in [2, 256]")),
    "compressor": (lambda: Compression("zip"), ("kind = 'zip'", "one of none, fp32")),
    "bits": (
        lambda: Compression("eden", bits=9),
        ("bits = 9", "1, 2, 3 or 4, or below 1, for eden"),
    ),
    "misspelt option": (
        lambda: _replay(server_step=5),
        ("'server_step'", "did you mean 'server_steps'?"),
    ),
    "keep_rate": (lambda: _replay(keep_rate=2), ("keep_rate = 2.0", "in (0, 1]")),
    "samples_per_round": (
        lambda: _replay(samples_per_round="many"),
        ("samples_per_round = 'many'", "a whole number"),
    ),
    "device": (lambda: _replay(device="gpu"), ("device = 'gpu'", "'auto', 'cpu', 'cuda'")),
    "no such device": (lambda: _replay(device="cuda:99"), ("'cuda:99'", "use 'auto'")),
    "amp": (lambda: _replay(amp="yes"), ("amp = 'yes'", "'auto', 'fastest', True or False")),
    "fraction_train": (lambda: _replay(fraction_train=0), ("fraction_train = 0", "in (0, 1]")),
    "fraction_evaluate": (lambda: _replay(fraction_evaluate=2), ("= 2.0", "in [0, 1]")),
    "importance": (lambda: _replay(importance="los"), ("importance = 'los'", "one of all")),
    "model": (lambda: QuantizedDataReplay(lambda: 5, _optimizer), ("int", "nn.Module")),  # type: ignore[arg-type, return-value]
    "lazy model": (
        lambda: QuantizedDataReplay(nn.LazyLinear(3), _optimizer),
        ("LazyLinear", "lazy layers", "run it over one sample first"),
    ),
    "another model's optimizer": (
        lambda: QuantizedDataReplay(_model(), _optimizer(_model().parameters())),
        ("optimizer", "another model", "pass a factory"),
    ),
    "contradiction": (
        lambda: _streaming(keep_rate=0.5),
        ("keep_rate = 0.5", "legal is 1.0", "or importance random"),
    ),
    "refinement": (lambda: _streaming(refinement="zip"), ("'zip'", "one of none, auto")),
    "vote": (
        lambda: GradientCompression(_model, _optimizer, majority_vote=True),
        ("majority_vote", "needs compressor sign"),
    ),
    "local_steps": (
        lambda: CompressedFedAvg(_model, learning_rate=0.1, local_steps=0),
        ("local_steps = 0", ">= 1"),
    ),
    "three parts": (
        lambda: _answer([(IMAGES[0], 1, 2)]),
        ("a tuple of 3", "(sample, target) pair", "Wrap the data set"),
    ),
    "mapping": (
        lambda: _answer([{"a": IMAGES[0], "b": IMAGES[0], "c": 1}]),
        ("keys a, b, c", "Pass keys=(sample key, target key)"),
    ),
    "wrong keys": (
        lambda: _answer([{"a": IMAGES[0], "b": 1}] * 3, keys=("img", "label")),
        ("keys a, b,", "img, label"),
    ),
    "no data set": (lambda: _answer(None), ("NoneType", "map-style data set")),
    "iterator": (
        lambda: _answer(pair for pair in zip(IMAGES, LABELS, strict=True)),
        ("generator", "list(...) of an iterable one"),
    ),
    "text": (
        lambda: _answer(_pairs("text", 1), classes=3),
        ("str", "legal: integers, floats and bool"),
    ),
    "class in words": (
        lambda: _answer(_pairs(IMAGES[0], "cat"), classes=3),
        ("'cat'", "pass class_names="),
    ),
    "value_range": (
        lambda: _answer((IMAGES, LABELS), classes=3, value_range=(1.0, 0.0)),
        ("(1.0, 0.0)", "the lower one first"),
    ),
    "classes": (lambda: _answer((IMAGES, LABELS), classes=-1), ("classes = -1", "in [0, ")),
    "complex": (
        lambda: _answer((IMAGES.astype(complex), LABELS), classes=3),
        ("complex128", "legal: integers, floats and bool"),
    ),
    "five axes": (
        lambda: _answer((np.zeros((3, 1, 1, 1, 1, 1), np.uint8), LABELS[:3]), classes=3),
        ("(1, 1, 1, 1, 1)", "1 to 4 whole numbers"),
    ),
    "no model to score with": (
        lambda: _answer(
            (IMAGES, LABELS),
            StreamingRequest(server_round=1, importance="loss", keep_rate=0.5),
            classes=3,
        ),
        ("model",),
    ),
    "data set": (lambda: load("minst", "train"), ("'minst'", "one of mnist5k", "did you mean")),
    "split": (lambda: load("mnist5k", "val"), ("split = 'val'", "one of train, test")),
    "missing files": (lambda: load("cifar10", "train", "/nowhere"), ("/nowhere", "download=True")),
    "partition": (lambda: partitions(LABELS, 7), ("of 7", "6 samples", "fewer clients")),
    "run config": (
        lambda: RunConfig.from_run_config({"seed": "1"}),
        ("seed = '1'", "a whole number"),
    ),
    "run-config key": (
        lambda: RunConfig.from_run_config({"learning_rate": 1}),
        ("'learning_rate'", "did you mean 'learning-rate'?"),
    ),
    "out-dir": (lambda: RunFolder(Path(__file__)), ("out-dir = ", "choose another")),
}


@pytest.mark.parametrize("name", API)
def test_a_mistake_in_the_api_is_told_in_one_line(name: str) -> None:
    provoke, told = API[name]
    started = time.process_time()
    with pytest.raises((ValueError, TypeError, DataError)) as caught:
        provoke()
    assert time.process_time() - started < SECONDS
    assert_one_line(str(caught.value), *told)


def test_there_are_many() -> None:
    assert len(MISTAKES) >= 40
    assert len(API) >= 40


# What is known only when it happens


def test_a_failed_run_ends_with_one_line_and_its_log(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def launch(_: Path, __: object, ___: int, echo: Callable[[str], None]) -> None:
        for number in range(1000):
            echo(f"\x1b[92mINFO \x1b[0m:      line {number}")
        echo("\x1b[92mINFO \x1b[0m:      ")
        raise RunError("run finished:failed: the loss is nan")

    monkeypatch.setattr(commands, "launch", launch)
    assert main(["run", "--out", "new"]) == 1
    output = capsys.readouterr()
    log = place / "new" / "log.txt"
    assert output.err == f"error: run finished:failed: the loss is nan; log: {log}\n"
    assert "\x1b" not in output.out + log.read_text()
    assert output.out.count("\n") == 1000  # all but the empty one
    assert log.read_text().count("\n") == 1001


@pytest.mark.parametrize(
    ("details", "lines", "cause"),
    [
        (
            "Simulation failed with exception: no reply could be used: node 7: no data",
            ["  raise X", "strategies.errors.RunFailed: no reply could be used: node 7: no data"],
            "no reply could be used: node 7: no data",
        ),
        (
            "Simulation failed with exception: 'rate'",
            ["Traceback (most recent call last):", "KeyError: 'rate'", "ERROR : Exit Code: 700"],
            "KeyError: 'rate'",
        ),
        (
            "Simulation failed with exception: out of\nmemory",
            ["torch.cuda.OutOfMemoryError: out of", "memory"],
            "OutOfMemoryError: out of memory",
        ),
        ("", ["first", "", "second", "third", "fourth", " "], "second third fourth"),
        ("stopped by user", ["anything"], "stopped by user"),
    ],
)
def test_the_cause_is_told_in_the_words_of_whoever_raised_it(
    details: str, lines: list[str], cause: str
) -> None:
    assert _cause(details, lines) == cause


RAY = (
    "<class 'ray.exceptions.RayTaskError(ClientAppException)'>:<'\x1b[36mray::ClientAppActor.run()"
    '\x1b[39m (pid=6, repr=<flwr.Actor at 0x7f>)\n    ^^^^\n  File "x.py", line 1\n'
    "fl_app.images.MissingSplit: no folder x\n\nThe above exception was the direct cause of the "
    "following exception:\n\nflwr.clientapp.client_app.ClientAppException: \nException "
    "ClientAppException occurred. Message: no folder x: name\nanother'>"
)


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("no data here", "no data here"),
        ("<class 'KeyError'>:<'rate is\n missing'>", "rate is missing"),
        (RAY, "no folder x: name another"),
        ("", "no reason given"),
        ("x" * 10_000, "x" * 600 + "..."),
    ],
)
def test_a_clients_error_is_told_in_its_own_words(reason: str, words: str) -> None:
    assert client_words(reason) == words
