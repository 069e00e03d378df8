"""Rounds with a scout: kilobytes down, no torch on the device, nothing breaks if it gets lost."""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from inprocess_grid import Client, InProcessGrid
from requested_client import LOSSLESS, answer, context, digits, message, sent_indices
from scouts import as_scout, trained
from small_task import make_model, raising_client
from torch import nn

from clients import ArraySource, train
from clients.importance import ModelOutputs, score
from clients.scout import STATE_KEY
from codec import CodecError, OptionError, PayloadError, SampleSpec
from codec.learning.inputs import float_inputs
from codec.learning.scout_bytes import base_of, from_bytes, to_bytes
from codec.messages import SCORED, BankTraining, ReplayRequest, SampleReply
from fl_app.config import ConfigError, RunConfig
from strategies import QuantizedDataReplay, SampleBank
from strategies.ledger import DOWNLINK
from strategies.received_samples import ReceivedSamples
from strategies.scout import ScoutTrainer

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = (60, 50, 40)
DIGITS = SampleSpec((1, 8, 8), classes=4)  # of `requested_client.digits`


def source_of(size: int, client: int) -> ArraySource:
    """Bright and dark images; the first pixels say which image of which client it is."""
    rng = np.random.default_rng(client)
    labels = rng.integers(0, 4, size)
    samples = rng.integers(0, 60, (size, 1, 8, 8)) + 40 * labels[:, None, None, None]
    samples[:, 0, 0, 0], samples[:, 0, 0, 1] = client, np.arange(size)
    return ArraySource(samples.astype(np.uint8), labels, 4, 0.0, 255.0)


def client_of(source: ArraySource) -> Client:
    """A client that has no model at all."""
    return lambda message, context: train(message, context, source)


def grid_of(*clients: Client) -> InProcessGrid:
    return InProcessGrid(list(clients) or [client_of(source_of(n, k)) for k, n in enumerate(SIZES)])


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05)


def strategy_of(**options: Any) -> QuantizedDataReplay:
    given: dict[str, Any] = {
        "codec": LOSSLESS,
        "importance": "margin",
        "scorer": "scout",
        "samples_per_round": 10,
        "server_steps": 5,
        "scout_steps": 6,
        "server_batch_size": 16,
        "device": "cpu",
        "seed": 3,
        "samples": DIGITS,
    }
    return QuantizedDataReplay(make_model(), sgd, **{**given, **options})


def marks(bank: SampleBank) -> list[tuple[int, int]]:
    samples, _, _ = next(bank.minibatches(len(bank), 1, np.random.default_rng(0)))
    return sorted(map(tuple, (samples[:, 0, 0, :2] * 255).round().int().tolist()))


def scouts_sent(grid: InProcessGrid) -> list[list[bytes | None]]:
    """The scouts of each round's requests."""
    return [
        [message.content["config"].get("scout") for message in messages]  # type: ignore[union-attr]
        for messages in grid.requests
        if messages
    ]


def test_rounds_with_a_scout() -> None:
    """The first round is random, then a whole scout, then changes of it; nobody gets a model."""
    grid, strategy = grid_of(), strategy_of()
    strategy.start(grid, num_rounds=7)
    assert not strategy.failures
    expected = sorted((k, image) for k, size in enumerate(SIZES) for image in range(size))
    assert marks(strategy.bank) == expected
    assert not any("arrays" in m.content for messages in grid.requests for m in messages)
    first, second, third, *_ = scouts_sent(grid)
    assert first == [None] * 3
    assert len({*second}) == 1 and base_of(second[0]) == b""  # type: ignore[arg-type]
    whole = from_bytes(second[0])  # type: ignore[arg-type]
    for sent in third:
        assert sent is not None and base_of(sent) and len(sent) < len(second[0])  # type: ignore[arg-type]
        assert to_bytes(from_bytes(sent, whole)) != second[0]
    # The ledger has them.
    by_round = [strategy.ledger.round_bytes(r)[1] for r in (1, 2, 3)]
    assert by_round[1] - by_round[0] > 2.8 * len(second[0])  # type: ignore[arg-type]
    everything = sum(len(s) for sent in scouts_sent(grid) for s in sent if s)
    assert strategy.ledger.sections(DOWNLINK)["scout"] == everything
    assert 2 * by_round[0] < by_round[2] < by_round[1]


def test_a_scored_round_sends_what_the_scout_scores_highest() -> None:
    source, scout = digits(), as_scout(trained(DIGITS))
    reply = answer(replay(to_bytes(scout), importance="loss", pool_factor=100.0), context(), source)
    seen = float_inputs(source.samples, DIGITS, "auto")
    scores = score("loss", ModelOutputs(*scout.outputs(seen), bias=True), source.targets)
    assert sorted(sent_indices(reply)) == sorted(np.argsort(-scores)[:12])


@pytest.mark.parametrize("importance", SCORED)
def test_all_scores_are_taken_from_a_scout(importance: str) -> None:
    data = to_bytes(as_scout(trained(DIGITS)))
    answers = [
        answer(replay(scout, importance=importance), context(), digits()) for scout in (data, None)
    ]
    assert answers[0]["num-examples"] == 48 and answers[1]["num-examples"] == 12
    assert sent_indices(answers[0]) != sent_indices(answers[1])


def replay(scout: bytes | None, **overrides: Any) -> Message:
    given = {"mode": "replay", "selection": "top", "importance": "margin", "scorer": "scout"}
    entries = {} if scout is None else {"scout": scout}
    return message(**{**given, **entries, **overrides})


def test_a_client_without_the_base_says_so_and_sends_all_the_same() -> None:
    base, scout = (as_scout(trained(DIGITS, steps)) for steps in (2, 4))
    change, ctx = to_bytes(scout, base), context()
    reply = answer(replay(change), ctx, digits())
    assert reply["lacks-scout"] is True and reply["num-sent"] == 12
    assert STATE_KEY not in ctx.state
    for data in (to_bytes(base), change):
        reply = answer(replay(data), ctx, digits())
        assert "lacks-scout" not in reply and reply["num-sent"] == 12
    # Now it has the second version, which the same change does not fit.
    assert answer(replay(change), ctx, digits())["lacks-scout"] is True


def test_malformed_scouts_cost_one_reply() -> None:
    with pytest.raises(PayloadError, match="do not begin as a scout"):
        answer(replay(b"noise"), context(), digits())

    def breaking(message: Message, context: Context) -> Message:
        config = message.content["config"]
        assert isinstance(config, ConfigRecord)
        if "scout" in config:
            config["scout"] = bytes(config["scout"])[:-9] + bytes(9)  # type: ignore[arg-type]
        return train(message, context, source_of(60, 0))

    grid = grid_of(breaking, client_of(source_of(50, 1)))
    strategy = strategy_of()
    strategy.start(grid, num_rounds=3)
    assert sum(strategy.failures.values()) == 2
    assert "checksum of the scout does not match" in strategy.book.why()
    assert len(strategy.bank) == 10 + 3 * 10


def test_a_node_whose_reply_or_state_was_lost_gets_a_whole_scout() -> None:
    calls = 0

    def forgetful(message: Message, context: Context) -> Message:
        nonlocal calls
        calls += 1
        if calls == 3:
            return raising_client(message, context)
        if calls == 5:
            context.state.pop(STATE_KEY)
        return train(message, context, source_of(60, 0))

    grid = grid_of(forgetful)
    strategy = strategy_of(samples_per_round=20)
    strategy.start(grid, num_rounds=7)
    is_change = [sent[0] and bool(base_of(sent[0])) for sent in scouts_sent(grid)[:6]]
    # Round 3 is lost; in round 5 the client lacks the base, and round 6 makes up for it.
    assert is_change[:4] == [None, False, True, False]
    assert len(strategy.bank) == 60


def test_the_trainer_knows_who_has_what() -> None:
    def without_memory(message: Message, context: Context) -> Message:
        context.state.pop(STATE_KEY, None)
        return train(message, context, source_of(60, 0))

    grid = grid_of(without_memory, client_of(source_of(60, 1)))
    strategy_of().start(grid, num_rounds=5)
    kinds = [sorted(bool(base_of(s)) for s in sent if s) for sent in scouts_sent(grid)[1:]]
    assert kinds == [[False, False], [True, True], [False, True], [True, True]]
    lacks = [
        sum(bool(reply.content["payload"].get("lacks-scout")) for reply in replies)  # type: ignore[union-attr]
        for replies in grid.replies
        if replies
    ]
    assert lacks == [0, 0, 1, 0, 1]


def bank_of(seed: int = 0, classes: int = 4) -> SampleBank:
    bank, source = SampleBank(), source_of(80, seed)
    bank.add_arrays(source.samples, source.targets)
    return bank


def trainer_of(**options: Any) -> ScoutTrainer:
    given = {"scout_steps": 60, "server_batch_size": 16} | options
    trainer = ScoutTrainer(BankTraining(**given), 5, torch.device("cpu"))
    request = ReplayRequest(server_round=1, importance="loss", scorer="scout")
    assert trainer.request_to(1, request, DIGITS).scout is None
    return trainer


def latest(trainer: ScoutTrainer, node_id: int = 1) -> bytes:
    request = ReplayRequest(server_round=2, importance="loss", scorer="scout")
    scout = trainer.request_to(node_id, request, DIGITS).scout
    assert scout is not None
    return scout


def test_training_learns_and_repeats_itself() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    versions = []
    for _ in range(2):
        trainer = trainer_of()
        trainer.train(1, bank_of())
        trainer.train(2, bank_of())
        versions.append(latest(trainer))
    assert versions[0] == versions[1]
    assert torch.equal(torch.get_rng_state(), before)
    test = source_of(50, 9)
    logits, _ = from_bytes(versions[0]).outputs(float_inputs(test.samples, DIGITS, "auto"))
    assert (logits.argmax(axis=1) == test.targets).mean() > 0.8


def test_a_restored_trainer_goes_on_bit_for_bit() -> None:
    whole, resumed = trainer_of(scout_steps=5), trainer_of(scout_steps=5)
    assert whole.position() == {}
    resumed.restore({})
    for trainer in (whole, resumed):
        trainer.train(1, bank_of())
        latest(trainer)
        trainer.arrived(received(1))
    again = ScoutTrainer(resumed.training, resumed.seed, resumed.device)
    again.restore({key: value.copy() for key, value in resumed.position().items()})
    for trainer in (whole, again):
        trainer.train(2, bank_of())
    # Node 1 has an earlier version, of which its state in a resumed run tells nothing.
    assert base_of(latest(whole)) and not base_of(latest(again))
    assert latest(whole, 2) == latest(again, 2)


def test_a_scout_that_diverges_is_begun_anew(caplog: pytest.LogCaptureFixture) -> None:
    trainer, bank = trainer_of(scout_steps=3), SampleBank()
    trainer.train(1, bank_of())
    latest(trainer)
    trainer.arrived(received(1))
    samples = np.random.default_rng(0).random((40, 1, 8, 8)).astype(np.float32)
    samples[3, 0, 0, 0] = np.inf
    bank.add_arrays(samples, np.arange(40) % 4)
    trainer.train(2, bank)
    assert "its training has diverged; samples come in random order" in caplog.text
    request = ReplayRequest(server_round=2, importance="loss", scorer="scout")
    assert trainer.request_to(1, request, DIGITS).scout is None
    trainer.train(3, bank_of())
    assert not base_of(latest(trainer))


def received(node_id: int) -> ReceivedSamples:
    reply = SampleReply(client=0, num_examples=1, samples=b"", num_sent=0, remaining=1)
    return ReceivedSamples(node_id, reply, {}, [], None)


def test_fewer_bits_are_fewer_bytes() -> None:
    sizes = []
    for bits in (8, 5, 3):
        trainer = trainer_of(scout_steps=2, scout_bits=bits)
        trainer.train(1, bank_of())
        sizes.append(len(latest(trainer)))
    assert sizes == sorted(sizes, reverse=True) and sizes[2] < sizes[0] / 2


def test_contradictions() -> None:
    for importance in ("all", "random"):
        with pytest.raises(OptionError, match="scorer = 'scout' has nothing to score"):
            strategy_of(importance=importance)
    entries = {"strategy": "streaming", "importance": "loss", "scorer": "scout"}
    with pytest.raises(ConfigError, match="scorer = 'scout' needs strategy = 'replay'"):
        RunConfig.from_run_config(entries)
    assert not ReplayRequest(server_round=1, importance="loss", scorer="scout").needs_model
    assert ReplayRequest(server_round=1, importance="loss").needs_model
    tokens = SampleSpec((8,), "int32", 0, 9, classes=4)
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(32, 4))
    strategy = QuantizedDataReplay(
        model,
        sgd,
        samples=tokens,
        importance="loss",
        scorer="scout",
        device="cpu",
    )
    with pytest.raises(CodecError, match="scorer model"):
        strategy.start(grid_of(), num_rounds=1)


WORKER = """
import pickle, sys
sys.modules["torch"] = None  # importing it is an error
from pathlib import Path
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from clients import ArraySource, train
TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
path = Path(sys.argv[1])
config, state, samples, targets = pickle.loads(path.read_bytes())
records = RecordDict({name: ConfigRecord(entries) for name, entries in state.items()})
context = Context(1, 7, {"partition-id": 0, "num-partitions": 1}, records, {})
reply = train(
    Message(RecordDict({"config": ConfigRecord(config)}), 7, "train"),
    context,
    ArraySource(samples, targets, 4, 0.0, 255.0),
)
content = {name: dict(record) for name, record in reply.content.items()}
state = {name: dict(record) for name, record in context.state.items()}
foreign = {"torch", "torchvision", "onnxruntime", "ray"} & {n for n, m in sys.modules.items() if m}
path.write_bytes(pickle.dumps((content, state, sorted(foreign))))
"""


def test_a_device_without_torch_scores_its_samples(tmp_path: Path) -> None:
    from flwr.app import MetricRecord

    source, state, path = source_of(60, 0), {}, tmp_path / "message"
    considered: list[int] = []

    def device(message: Message, _: Context) -> Message:
        nonlocal state
        config = dict(message.content["config"])  # type: ignore[call-overload]
        path.write_bytes(pickle.dumps((config, state, source.samples, source.targets)))
        root = str(Path(__file__).parents[1])
        subprocess.run([sys.executable, "-c", WORKER, str(path)], check=True, cwd=root)
        content, state, foreign = pickle.loads(path.read_bytes())
        assert foreign == []
        considered.append(content["metrics"]["num-examples"])
        records = {"payload": ConfigRecord(content["payload"])}
        return Message(
            RecordDict({**records, "metrics": MetricRecord(content["metrics"])}), reply_to=message
        )

    grid = grid_of(device)
    strategy = strategy_of(samples_per_round=16, pool_factor=2.5)
    strategy.start(grid, num_rounds=3)
    assert not strategy.failures and len(strategy.bank) == 48
    assert considered == [16, 40, 28]  # at random first, then out of 2.5 times as many, or all
    assert json.dumps(sorted(state)).count(STATE_KEY) == 1
