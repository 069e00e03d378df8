"""Federated averaging whose model travels as changes: both ways, with steps of the server's own."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from averaged import BATCH, RATE, SIZES, averaged_grid, averaging
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from small_task import (
    CLIENTS,
    batch_norm_model,
    largest_difference,
    minibatch,
    random_sources,
    smooth_model,
    states_after_rounds,
)
from torch import Tensor, nn
from wire import through_flower

from clients.arrays import array_view
from clients.baselines.kept_model import MODEL_KEY, VERSION_KEY
from codec import Compression, OptionError, PayloadError, generator
from codec.gradients import make_compressor
from codec.gradients.compression import Downlink
from codec.gradients.joined import decoder_of, joined
from codec.gradients.model_stream import VERSION_BYTES, changed, split_versions, version_of
from codec.messages import LocalRequest
from fl_app.config import ConfigError, RunConfig
from strategies.baselines.model_stream import ModelStream
from strategies.errors import RunFailed

SHAPES: list[tuple[int, ...]] = [(30, 20), (), (7,)]
DOINGS = st.sampled_from(["away", "asked", "lost", "dead"])
SPARSE = Downlink("top-k", density=0.1, value_bits=2)

pytestmark = pytest.mark.usefixtures("one_thread")

Arrays = list[NDArray[np.float32]]


def arrays_of(seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape), np.float32) for shape in SHAPES]


def stream_of(kind: str = "top-k", **options: Any) -> ModelStream:
    return ModelStream(joined(make_compressor(kind, **options)))


class Device:
    """A client's side of a stream, without a model around it."""

    def __init__(self) -> None:
        self.parameters: Arrays | None = None

    def receive(self, stream: ModelStream, node_id: int, whole_bytes: int = 10**9) -> bool:
        """Take in a request; return whether it was for the whole model."""
        lacking = stream.since(node_id, whole_bytes)
        if lacking is None:
            self.parameters = [values.copy() for values in stream.parameters]
            return True
        versions, updates = split_versions(lacking[0]), lacking[1]
        assert self.parameters is not None and len(versions) == len(updates) + 1
        start = max(k for k, v in enumerate(versions) if v == version_of(self.parameters))
        for data in updates[start:]:
            self.parameters = changed(self.parameters, data)
        assert version_of(self.parameters) == versions[-1] == stream.version
        return False

    def assert_has(self, stream: ModelStream) -> None:
        assert self.parameters is not None
        for own, theirs in zip(self.parameters, stream.parameters, strict=True):
            assert np.array_equal(own, theirs)


# The stream by itself


@pytest.mark.parametrize(
    ("kind", "options"),
    [("top-k", {"density": 0.05, "bits": 2}), ("top-k", {}), ("eden", {"bits": 4}), ("fp16", {})],
)
def test_what_was_sent_and_what_is_missing_are_the_steps(kind: str, options: Any) -> None:
    stream, model = stream_of(kind, **options), arrays_of(0)
    stream.publish(model, generator(1))
    first = [values.astype(np.float64) for values in model]
    sent = [np.zeros(values.shape) for values in model]
    steps = [np.zeros(values.shape) for values in model]
    for number in range(1, 9):
        step = [np.float32(0.1) * part for part in arrays_of(number)]
        model = [values + part for values, part in zip(model, step, strict=True)]
        known = stream.version
        stream.publish(model, generator(2, number))
        stream._known[1] = known
        lacking = stream.since(1, 10**9)
        assert lacking is not None
        (data,) = lacking[1]
        for total, part in zip(sent, decoder_of(data).decompress(data, SHAPES), strict=True):
            total += part
        for total, part in zip(steps, step, strict=True):
            total += part
    for begin, s, own, theirs, total in zip(
        first, sent, model, stream.parameters, steps, strict=True
    ):
        np.testing.assert_allclose(begin + s, theirs, atol=1e-5)
        residual = own.astype(np.float64) - theirs
        np.testing.assert_allclose(s + residual, total, atol=1e-5)


def test_a_change_that_rests_is_sent_in_the_end() -> None:
    """A model that stands still is reached, however little each change says of it."""
    stream, model = stream_of("top-k", density=0.2), arrays_of(0)
    stream.publish(model, generator(1))
    model = arrays_of(1)
    for number in range(9):
        stream.publish(model, generator(2, number))
    before = stream.version
    for own, theirs in zip(model, stream.parameters, strict=True):
        np.testing.assert_allclose(own, theirs, atol=1e-6)
    stream.publish(stream.parameters, generator(3))
    assert stream.version == before  # nothing new is no version


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.tuples(DOINGS, DOINGS, DOINGS)))
def test_all_that_answer_have_the_same_model(rounds: list[tuple[str, ...]]) -> None:
    """Whoever was away, or whose reply was lost, before or after the device took the model in."""
    stream, model = stream_of(density=0.02, bits=2), arrays_of(0)
    devices = [Device() for _ in range(3)]
    for number, doings in enumerate(rounds):
        model = [values + part for values, part in zip(model, arrays_of(number), strict=True)]
        stream.publish(model, generator(5, number))
        for node, (device, doing) in enumerate(zip(devices, doings, strict=True)):
            if doing == "asked":
                device.receive(stream, node)
                device.assert_has(stream)
                stream.arrived(node, lacks=False)
            elif doing == "lost":
                device.receive(stream, node)
            elif doing == "dead":  # before it has read the request
                stream.since(node, 10**9)


def test_missed_rounds_bring_the_changes_or_the_whole_model_whichever_is_smaller() -> None:
    stream, model, device = stream_of(density=0.02), arrays_of(0), Device()
    stream.publish(model, generator(0))
    assert device.receive(stream, 7)
    stream.arrived(7, lacks=False)
    for number in range(1, 6):
        model = [values + part for values, part in zip(model, arrays_of(number), strict=True)]
        stream.publish(model, generator(number))
    lacking = stream.since(7, 10**9)
    assert lacking is not None and len(lacking[1]) == 5
    size = sum(map(len, lacking[1])) + 5 * VERSION_BYTES
    assert not device.receive(stream, 7, size + 1)
    device.assert_has(stream)
    assert stream.since(7, size) is None
    assert stream.since(8, 10**9) is None  # a node that nobody knows


def test_a_node_that_says_it_lacks_the_model_gets_it_whole() -> None:
    stream, device = stream_of(), Device()
    stream.publish(arrays_of(0), generator(0))
    device.receive(stream, 1)
    stream.arrived(1, lacks=False)
    assert stream.since(1, 10**9) == (stream.version, ())
    stream.arrived(1, lacks=True)
    assert stream.since(1, 10**9) is None


def test_state_goes_on_bit_for_bit() -> None:
    one, other = stream_of(density=0.05), stream_of(density=0.05)
    for number in range(3):
        one.publish(arrays_of(number), generator(number))
    other.restore(one.state())
    assert other.version == one.version
    for stream in (one, other):
        stream.publish(arrays_of(9), generator(9))
    assert other.version == one.version
    assert other.since(1, 10**9) is None
    fresh = stream_of()
    fresh.restore(stream_of().state())
    fresh.publish(arrays_of(0), generator(0))
    assert fresh.since(1, 10**9) is None


def test_bytes_of_no_compressor_are_refused() -> None:
    with pytest.raises(PayloadError, match="written by compressor 99"):
        decoder_of(b"QDGC\x03\x63" + bytes(9))
    with pytest.raises(PayloadError, match="do not begin"):
        changed(arrays_of(0), b"what")
    data, _ = joined(make_compressor("top-k")).compress(arrays_of(0), None, generator(0))
    with pytest.raises(PayloadError, match="shapes"):
        changed(arrays_of(0)[:1], data)


# In federated averaging


_strategy = partial(averaging, compression="fp32")


def _kept(context: Context) -> dict[str, NDArray[Any]]:
    record = context.state[MODEL_KEY]
    assert isinstance(record, ArrayRecord)
    return {name: array_view(array) for name, array in record.items()}


def read_request(message: Message) -> LocalRequest:
    record = message.content["config"]
    assert isinstance(record, ConfigRecord)
    return LocalRequest.from_entries(record)


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.second.weight = self.first.weight
        self.first.bias.requires_grad_(False)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, samples: Tensor) -> Tensor:
        outputs: Tensor = self.second(torch.tanh(self.first(samples.flatten(1))))
        return self.scale * outputs


def tied_model() -> nn.Module:
    torch.manual_seed(0)
    return _Tied()


@pytest.mark.parametrize("model", [smooth_model, tied_model, batch_norm_model])
def test_lossless_changes_both_ways_are_plain_fed_avg(model: Callable[[], nn.Module]) -> None:
    plain = states_after_rounds(_strategy(model, compression="fp32"), averaged_grid(model), 4)
    strategy = _strategy(model, downlink="fp32")
    coded = states_after_rounds(strategy, averaged_grid(model), 4)
    for one, other in zip(plain, coded, strict=True):
        assert largest_difference(one, other) < 2e-6
    assert strategy.steps_taken == 12


@pytest.mark.parametrize("downlink", ["none", "fp32"])
def test_one_local_step_and_outer_momentum_are_central_training(downlink: str) -> None:
    """DiLoCo of one step: Nesterov's SGD along the averaged gradient, times the local rate."""
    strategy = _strategy(
        local_steps=1, outer_learning_rate=0.7, outer_momentum=0.9, downlink=downlink
    )
    states = states_after_rounds(strategy, averaged_grid(), 5)
    model, sources = smooth_model(), random_sources(SIZES)
    optimizer = torch.optim.SGD(model.parameters(), 0.7, momentum=0.9, nesterov=True)
    for step, state in enumerate(states):
        total = torch.zeros(())
        for client, source in enumerate(sources):
            samples, targets = minibatch(source, client, step, BATCH)
            loss = nn.functional.cross_entropy(model(samples), targets)
            total = total + len(source) / sum(SIZES) * loss
        optimizer.zero_grad()
        (RATE * total).backward()  # type: ignore[no-untyped-call]  # torch's has no types
        optimizer.step()
        assert largest_difference(state, dict(model.state_dict())) < 5e-6
    assert strategy.steps_taken == 5


@pytest.mark.parametrize("model", [smooth_model, tied_model])
def test_a_sparse_downlink_leaves_all_with_the_model_of_the_broadcast(
    model: Callable[[], nn.Module],
) -> None:
    strategy = _strategy(
        model,
        compression=Compression("top-k", density=0.1, value_bits=2),
        downlink=SPARSE,
        fraction_train=0.5,
        min_train_nodes=2,
    )
    grid = averaged_grid(model)
    states_after_rounds(strategy, grid, 8)
    assert not strategy.failures and strategy.stream is not None
    last = {m.metadata.dst_node_id for m in [sent for sent in grid.requests if sent][-1]}
    assert len(last) == 2
    whole = {name: array.numpy() for name, array in strategy._sent.items()}
    for node_id in last:
        kept = _kept(grid.contexts[node_id])
        assert kept.keys() == whole.keys()
        assert all(np.array_equal(kept[name], whole[name]) for name in whole)
    # Nobody was sent the model twice, and only the first time whole.
    for node_id in grid.contexts:
        asked = [m for sent in grid.requests for m in sent if m.metadata.dst_node_id == node_id]
        assert ["arrays" in m.content for m in asked] == [True] + [False] * (len(asked) - 1)


def test_bytes_both_ways_are_those_of_the_messages() -> None:
    plain, strategy = _strategy(), _strategy(downlink=Downlink("top-k", density=0.02))
    grid = averaged_grid()
    states_after_rounds(plain, averaged_grid(), 6)
    states_after_rounds(strategy, grid, 6)
    sections = strategy.ledger.sections("downlink")
    asked = [read_request(message) for sent in grid.requests for message in sent]
    updates = [len(part) for request in asked for part in request.updates]
    assert len(updates) == 5 * CLIENTS and sections["updates"] == sum(updates)
    whole = plain.ledger.sections("downlink")["arrays"] / 6
    assert sections["arrays"] == whole
    assert strategy.ledger.downlink_bytes < 0.4 * plain.ledger.downlink_bytes
    assert sum(sections.values()) == strategy.ledger.downlink_bytes


def test_a_client_that_has_lost_the_model_says_so_and_gets_it_whole() -> None:
    grid = averaged_grid()
    forgetful = next(iter(grid.clients))
    answer, rounds = grid.clients[forgetful], []

    def client(message: Message, context: Context) -> Message:
        rounds.append("arrays" in message.content)
        if len(rounds) == 3:
            context.state.clear()
        return answer(message, context)

    grid.clients[forgetful] = client
    strategy = _strategy(downlink=SPARSE)
    states_after_rounds(strategy, grid, 6)
    assert rounds == [True, False, False, True, False, False]
    assert not strategy.failures
    payloads = [
        reply.content.config_records["payload"]
        for reply in [replies for replies in grid.replies if replies][2]
        if reply.metadata.src_node_id == forgetful
    ]
    assert [p["lacks-model"] for p in payloads] == [True] and "delta" not in payloads[0]


def test_a_kept_model_that_is_damaged_is_lacking() -> None:
    grid, strategy = averaged_grid(), _strategy(downlink=SPARSE)
    states_after_rounds(strategy, grid, 2)
    node_id, context = next(iter(grid.contexts.items()))
    kept = {name: values.copy() for name, values in _kept(context).items()}
    kept["0.bias"] += np.float32(1e-3)
    context.state[MODEL_KEY] = ArrayRecord({name: Array(v) for name, v in kept.items()})
    states_after_rounds(strategy, grid, 1)
    replies = [replies for replies in grid.replies if replies][-1]
    reply = next(r for r in replies if r.metadata.src_node_id == node_id)
    assert reply.content.config_records["payload"]["lacks-model"] is True


def test_replies_that_are_refused_do_not_part_the_models() -> None:
    """A client whose reply is of no use has the new model all the same."""
    grid = averaged_grid()
    spoiled = next(iter(grid.clients))
    answer, seen = grid.clients[spoiled], []

    def client(message: Message, context: Context) -> Message:
        reply = answer(message, context)
        seen.append(len(read_request(message).updates))
        if len(seen) in (2, 3):
            reply.content.config_records["payload"]["delta"] = b"nothing"
        return reply

    grid.clients[spoiled] = client
    strategy = _strategy(downlink=SPARSE)
    states_after_rounds(strategy, grid, 6)
    assert strategy.failures == {"delta": 2}
    assert seen == [0, 1, 2, 3, 1, 1]
    whole = {name: array.numpy() for name, array in strategy._sent.items()}
    kept = _kept(grid.contexts[spoiled])
    assert all(np.array_equal(kept[name], whole[name]) for name in whole)


def test_another_model_of_the_host_s_begins_a_stream_anew() -> None:
    strategy, grid = _strategy(downlink=SPARSE), averaged_grid()
    states_after_rounds(strategy, grid, 2)
    other = {k: torch.ones_like(v) / 100 for k, v in smooth_model().state_dict().items()}
    strategy.start(grid, ArrayRecord(other), num_rounds=1)
    last = [sent for sent in grid.requests if sent][-1]
    assert all("arrays" in message.content for message in last)
    kept = _kept(next(iter(grid.contexts.values())))
    assert all(np.array_equal(kept[name], other[name].numpy()) for name in other)


def test_rivals_get_nearer_to_a_solution() -> None:
    """SparseLoCo's and DiLoCo's forms, and top-k both ways."""
    samples = np.concatenate([source.samples for source in random_sources(SIZES)])
    targets = np.concatenate([source.targets for source in random_sources(SIZES)])
    forms: list[dict[str, Any]] = [
        {"compression": Compression("top-k", density=0.03, value_bits=2), "feedback": 0.95,
         "downlink": Downlink("top-k", density=0.06, value_bits=2), "local_optimizer": "adamw",
         "learning_rate": lambda _: 0.01, "momentum": 0.9},
        {"compression": Compression("eden", bits=4), "outer_learning_rate": 0.7,
         "outer_momentum": 0.9, "downlink": "eden"},
        {"compression": Compression("top-k", density=0.1), "downlink": SPARSE},
    ]  # fmt: skip
    for form in forms:
        strategy = _strategy(**form, local_steps=4)
        before, _ = strategy.server_model.evaluate(samples, targets, high=255.0)
        states_after_rounds(strategy, averaged_grid(), 5)
        after, _ = strategy.server_model.evaluate(samples, targets, high=255.0)
        assert after < before - 0.05 and not strategy.failures


# On the client


def test_adamw_takes_its_own_steps() -> None:
    strategy = _strategy(
        local_steps=3, local_optimizer="adamw", momentum=0.8, weight_decay=0.1,
        learning_rate=lambda _: 0.01, min_available_nodes=1,
    )  # fmt: skip
    (state,) = states_after_rounds(strategy, averaged_grid(sizes=(40,)), 1)
    model, source = smooth_model(), random_sources((40,))[0]
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, betas=(0.8, 0.999), weight_decay=0.1)
    for step in range(3):
        samples, targets = minibatch(source, 0, step, BATCH)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(samples), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert largest_difference(state, dict(model.state_dict())) < 1e-6


def test_an_error_memory_may_fade() -> None:
    def residual(feedback: float) -> NDArray[Any]:
        grid = averaged_grid()
        coder = Compression("top-k", density=1e-6)  # a coordinate
        strategy = _strategy(compression=coder, feedback=feedback, learning_rate=lambda r: r % 2)
        states_after_rounds(strategy, grid, 2)  # in the second nothing is learned
        record = next(iter(grid.contexts.values())).state["delta-residual"]
        assert isinstance(record, ArrayRecord)
        return array_view(record["0"])

    kept, faded = residual(1.0), residual(0.25)
    rest = (kept != 0) & (faded != 0)
    assert rest.sum() > 0.9 * len(kept)
    np.testing.assert_allclose(faded[rest], 0.25 * kept[rest], rtol=1e-6)


def test_no_model_is_kept_where_none_needs_to_be() -> None:
    grid = averaged_grid()
    states_after_rounds(_strategy(), grid, 2)
    for context in grid.contexts.values():
        assert not {MODEL_KEY, VERSION_KEY} & set(context.state)


# Options


def test_options_that_contradict_each_other() -> None:
    with pytest.raises(OptionError, match="downlink = 'top-k' needs clients that send changes"):
        _strategy(compression="none", downlink="top-k")
    with pytest.raises(ConfigError, match="downlink = 'top-k' needs clients that send changes"):
        RunConfig.from_run_config({"strategy": "fedavg", "downlink": "top-k"})
    for kind in ("qsgd", "rand-k"):
        with pytest.raises(OptionError, match="must be one of none, fp32, fp16, top-k, eden"):
            Downlink(kind)
    for bits in (0.5, 1.5):
        with pytest.raises(OptionError, match="bits"):
            Downlink("eden", bits=bits)
    with pytest.raises(OptionError, match="value_bits = 8 must be 2, 16 or 32"):
        Downlink("top-k", value_bits=8)


@pytest.mark.parametrize(
    ("versions", "updates"),
    [(b"1234567", ()), (b"", (b"x",)), (bytes(8), (b"x",)), (bytes(16), ())],
)
def test_versions_that_do_not_go_with_the_updates(versions: bytes, updates: Any) -> None:
    with pytest.raises(OptionError, match="versions has"):
        LocalRequest(server_round=1, learning_rate=0.1, versions=versions, updates=updates)


def test_a_whole_request_travels() -> None:
    request = LocalRequest(
        server_round=1, learning_rate=0.1, versions=bytes(range(24)), updates=(b"a", b"bc")
    )
    assert LocalRequest.from_entries(through_flower(request.to_entries())) == request
    assert split_versions(request.versions)[1] == bytes(range(8, 16))


def test_a_learning_rate_of_the_host_s_does_not_become_the_server_s(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = _strategy(outer_learning_rate=0.5)
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    with caplog.at_level("WARNING", "flwr"):
        strategy.start(averaged_grid(), num_rounds=1, train_config=ConfigRecord({"lr": 0.3}))
    assert strategy.server_model.optimizer.param_groups[0]["lr"] == 0.5
    assert "'lr' has no effect: pass learning_rate" in caplog.text


def test_malformed_updates_are_an_error_of_the_round() -> None:
    grid = averaged_grid()

    class Spoiling(ModelStream):
        def since(self, node_id: int, whole_bytes: int) -> Any:
            found = super().since(node_id, whole_bytes)
            return found and (found[0], tuple(data[:-1] for data in found[1]))

    strategy = _strategy(downlink=SPARSE)
    assert strategy.stream is not None
    strategy.stream.__class__ = Spoiling
    try:
        states_after_rounds(strategy, grid, 2)
    except RunFailed:
        pytest.fail("the first round was good")
    assert strategy.failures == {"error": CLIENTS}
