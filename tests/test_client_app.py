"""Tests of fl_app.client_app, without torch where none is needed."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from PIL import Image

from codec import CodecOptions, SamplePayload, decode_samples
from fl_app.client_app import app, node_source
from fl_app.config import RunConfig
from fl_app.data import load
from fl_app.models import build_model
from fl_app.partition import partitions

# Torch is hidden from the import system, so that this process is like one without it.
WITHOUT_TORCH = """
import sys
from importlib.machinery import PathFinder

class NoTorch(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision"):
            return None
        return PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = NoTorch
try:
    import torch
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("torch is not blocked")
"""

ONE_ROUND = """
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from codec import CodecOptions, SamplePayload, decode_samples
from fl_app.client_app import app

TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
config = {"server-round": 1, "seed": 0, "mode": "replay", "samples-per-round": 20,
          "codec": CodecOptions().to_bytes(), "importance": "random"}
partitions = int(sys.argv[1])
node = {"partition-id": 3, "num-partitions": partitions}
context = Context(1, 7, node, RecordDict(), {})
message = Message(RecordDict({"config": ConfigRecord(config)}), 7, "train")
payload = app(message, context).content["payload"]
decoded = decode_samples(SamplePayload.from_bytes(payload["samples"]))
assert decoded.samples.shape == (20, 1, 28, 28), decoded.samples.shape
assert payload["client"] == 3, dict(payload)
assert payload["remaining"] == 4000 // partitions - 20, dict(payload)
assert not any(name.partition(".")[0] == "torch" for name in sys.modules)
"""


def request(**changes: int | float | str | bytes) -> ConfigRecord:
    entries: dict[str, int | float | str | bytes] = {
        "server-round": 1,
        "seed": 0,
        "mode": "replay",
        "codec": CodecOptions("lossless").to_bytes(),
        "samples-per-round": 10,
    }
    return ConfigRecord({**entries, **{k.replace("_", "-"): v for k, v in changes.items()}})


def ask(
    content: dict[str, ConfigRecord | ArrayRecord],
    node_config: dict[str, int | str],
    run_config: dict[str, int | float | str] | None = None,
) -> dict[str, Any]:
    context = Context(1, 7, dict(node_config), RecordDict(), dict(run_config or {}))
    reply = app(Message(RecordDict(dict(content)), 7, MessageType.TRAIN), context)
    record, metrics = reply.content["payload"], reply.content["metrics"]
    assert isinstance(record, ConfigRecord) and isinstance(metrics, MetricRecord)
    return {**record, **metrics}


@pytest.mark.parametrize("partitions", [1, 10])
def test_client_trains_without_torch(partitions: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH + ONE_ROUND, str(partitions)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_client_sends_samples_of_its_own_partition() -> None:
    record = ask({"config": request()}, {"partition-id": 2, "num-partitions": 4})
    assert isinstance(record["samples"], bytes)
    decoded = decode_samples(SamplePayload.from_bytes(record["samples"]))
    train = load("mnist5k", "train")
    own = train.samples[partitions(train.labels, 4)[2]].astype(np.float32)
    owned = {sample.tobytes() for sample in own}
    assert len(decoded.samples) == 10
    assert all(sample.tobytes() in owned for sample in decoded.samples)


def test_scores_come_from_the_model_of_the_config() -> None:
    model = build_model("logistic", (1, 28, 28), 10)
    record = ask(
        {
            "config": request(mode="streaming", importance="loss", keep_rate=0.5, batch_size=20),
            "arrays": ArrayRecord(model.state_dict()),
        },
        {"partition-id": 0, "num-partitions": 10},
        {"model": "logistic"},
    )
    assert record["num-examples"] == 20
    assert isinstance(record["num-sent"], int)
    assert 0 < record["num-sent"] < 20


def test_node_with_its_own_folder_owns_all_of_it(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        folder = tmp_path / "train" / name
        folder.mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(folder / f"{i}.png")
            os.utime(folder / f"{i}.png", (0, 0))
    record = ask(
        {"config": request(samples_per_round=0)},
        {"partition-id": 5, "data-dir": str(tmp_path)},
        {"dataset": "imagefolder", "image-size": 8, "data-dir": "elsewhere"},
    )
    assert (record["num-sent"], record["remaining"], record["client"]) == (6, 0, 5)


@pytest.mark.parametrize(
    ("node", "folder"),
    [
        ({"partition-id": 2, "num-partitions": 4}, "run/2"),
        ({"partition-id": 2}, "run"),
        ({"partition-id": 2, "state-dir": "node"}, "node"),
        ({"partition-id": 2, "num-partitions": 4, "state-dir": "node"}, "node/2"),
    ],
)
def test_a_device_remembers_where_it_is_told(
    node: dict[str, int | str], folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ask({"config": request(bank=b"the bank")}, node, {"state-dir": "run"})
    (found,) = tmp_path.rglob("*.sqlite")
    assert found.parent == tmp_path / folder and found.stem == b"the bank".hex()


def test_data_are_loaded_once_per_partition() -> None:
    config = RunConfig()
    assert node_source(config, "", 1, 10) is node_source(RunConfig(), "", 1, 10)
    assert node_source(config, "", 2, 10) is not node_source(config, "", 1, 10)


def test_illegal_config_is_refused_by_the_client_too() -> None:
    with pytest.raises(ValueError, match="no key 'batchsize'"):
        ask({"config": request()}, {}, {"batchsize": 3})
