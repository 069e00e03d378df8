"""`sim run --engine direct` is a run on Flower's engine, without that: bytes, results and ends."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sim_process import start_run
from small_app import write_app

from fl_app.config import RunConfig
from sim.in_process import train_in_process

pytestmark = pytest.mark.slow

CLIENTS, ROUNDS = 3, 3
CONFIG = {
    "num-rounds": ROUNDS,
    "server-steps": 10,
    "samples-per-round": 10,
    "max-train-samples": 60,
    "model": "logistic",
    "codec": "lossless",
    "threads": 1,
}
STREAMING = {**CONFIG, "strategy": "streaming", "codec": "dct", "refinement": "eden"}
WAYS = ("uplink", "downlink")
OWN = {"seconds", "round_seconds", "versions", "config"}  # of a result: what differs by run

SERVER = """
import os, time
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    config = context.run_config
    print("CWD", os.getcwd(), "GROUP", os.getpgid(0), "RATE", config["rate"], flush=True)
    if config["mode"] == "fail":
        raise ValueError("rate = 7 is out of range")
    for _ in range(2):
        messages = [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]
        for reply in grid.send_and_receive(messages):
            print("CLIENT", *reply.content["answer"].values(), flush=True)
    if config["mode"] == "block":
        time.sleep(1000)
    (Path(config["out-dir"]) / "done").touch()
"""
CLIENT = """
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.query()
def query(msg, context):
    context.state["n"] = ConfigRecord({"n": context.state.get("n", {"n": 0})["n"] + 1})
    answer = {**context.state["n"], **context.node_config}
    return Message(RecordDict({"answer": ConfigRecord(answer)}), reply_to=msg)
"""


def _run(folder: Path, config: dict[str, Any], *options: str) -> str:
    """Run the app; return what was printed."""
    pairs = [f"{key}={value}" for key, value in config.items()]
    command = ("--clients", str(CLIENTS), "--out", str(folder), "--config", *pairs, *options)
    output, _ = (process := start_run(*command, cwd=folder.parent)).communicate()
    assert process.returncode == 0, output
    return output


def _told(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the result, without what differs from run to run, and the rounds."""
    result = json.loads((folder / "result.json").read_text())
    rounds = (folder / "rounds.jsonl").read_text().splitlines()
    # Flower's ids of nodes differ, too.
    result["nodes"] = sorted(map(json.dumps, result["nodes"].values()))
    return {k: v for k, v in result.items() if k not in OWN}, [json.loads(r) for r in rounds]


def _check_envelopes(flower: dict[str, int], direct: dict[str, int]) -> None:
    """Envelopes name run, task and node by random numbers, of which each takes 9 or 10 bytes."""
    assert flower.keys() == direct.keys() == set(WAYS)
    for way in WAYS:
        assert abs(flower[way] - direct[way]) <= 10 * CLIENTS * ROUNDS


@pytest.mark.simulation
@pytest.mark.timeout(900)
@pytest.mark.parametrize("config", [CONFIG, STREAMING], ids=["replay", "streaming"])
def test_bytes_and_results_are_those_of_flowers_engine(
    config: dict[str, Any], tmp_path: Path
) -> None:
    _run(tmp_path / "flower", config)
    _run(tmp_path / "direct", config, "--engine", "direct", "--processes", "2")
    (flower, flower_rounds), (direct, direct_rounds) = map(
        _told, (tmp_path / "flower", tmp_path / "direct")
    )
    _check_envelopes(flower.pop("envelope_bytes"), direct.pop("envelope_bytes"))
    for one, other in zip(flower_rounds, direct_rounds, strict=True):
        pairs = [{way: r.pop(f"{way}_envelope_bytes") for way in WAYS} for r in (one, other)]
        _check_envelopes(*pairs)
    assert (flower, flower_rounds) == (direct, direct_rounds)
    names = [{f.name for f in (tmp_path / engine).iterdir()} for engine in ("flower", "direct")]
    assert names[0] == names[1]
    models = [load_file(tmp_path / engine / "model.safetensors") for engine in ("flower", "direct")]
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_it_is_the_run_of_one_process_and_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    output = _run(folder, {**CONFIG, "num-rounds": 2}, "--engine", "direct")
    assert "round 2/2: accuracy" in output and output.endswith(
        f"run folder: {folder}\nreport: {folder / 'report.html'}\n"
    )
    more = ("--engine", "direct", "--config", f"num-rounds={ROUNDS}")
    resumed = start_run("--resume", str(folder), *more, cwd=tmp_path)
    assert resumed.communicate()[0] and resumed.returncode == 0
    result, rounds = _told(folder)
    assert result["failures"] == {} and [r["round"] for r in rounds] == [*range(ROUNDS + 1)]
    expected, _ = train_in_process(RunConfig.from_run_config(CONFIG), CLIENTS)
    assert result["samples_sent"] == expected.book.samples_sent == 60
    schedule_free = result["sections"]["values"]
    assert schedule_free == expected.ledger.sections()["values"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("direct")
    write_app(folder, server=SERVER, client=CLIENT)
    # Where the user stands there may be a package of the same name.
    (folder / "tiny").mkdir()
    (folder / "tiny" / "__init__.py").write_text("raise RuntimeError('imported from the cwd')")
    return folder


def _start_tiny(folder: Path, mode: str) -> "subprocess.Popen[str]":
    return start_run(
        *("--engine", "direct", "--app", str(folder / "app"), "--clients", "2"),
        *("--config", f"mode={mode}", "rate=3", "--out", f"out-{mode}"),
        cwd=folder,
    )


def test_any_app_runs(tiny: Path) -> None:
    process = _start_tiny(tiny, "succeed")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "RATE 3.0" in output and (tiny / "out-succeed" / "done").exists()
    answers = [line.split()[1:] for line in output.splitlines() if line.startswith("CLIENT")]
    assert sorted(answers) == [[n, k, "2"] for n in "12" for k in "01"]


def test_a_failure_is_told_with_its_cause(tiny: Path) -> None:
    process = _start_tiny(tiny, "fail")
    output, _ = process.communicate()
    assert process.returncode == 1
    last = output.splitlines()[-1]
    assert last.startswith("error: run failed: ValueError: rate = 7 is out of range; log: ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_of_a_run_that_is_stopped(tiny: Path, number: int) -> None:
    process = _start_tiny(tiny, "block")
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    started = next(line for line in lines if line.startswith("CWD")).split()
    cwd, group = started[1], int(started[3])
    next(line for line in lines if line.startswith("CLIENT"))
    process.send_signal(number)
    rest, _ = process.communicate()  # to the end of all that print there
    assert process.returncode == (130 if number == signal.SIGINT else -number), rest
    until = time.monotonic() + 30
    while Path(cwd).parent.exists() or _is_running(group):
        assert time.monotonic() < until
        time.sleep(0.1)


def _is_running(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
