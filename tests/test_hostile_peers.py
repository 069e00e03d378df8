"""What a hostile or broken client sends is refused with its cause, and costs the others nothing.

Every message goes through the real strategies: the run goes on, and ends with the very model that
it would have had without that client.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from inprocess_grid import Client, InProcessGrid
from numpy.typing import NDArray
from torch import Tensor, nn

from clients import ArraySource, train
from clients.baselines import train_gradient, train_local
from codec import CodecOptions, Compression, SamplePayload, SampleSpec, encode_samples
from codec.gradients import make_compressor
from codec.gradients.joined import joined
from codec.learning.batch_norm import encode_statistics, statistics
from codec.samples import columns
from strategies import QuantizedDataReplay, QuantizedDataStreaming
from strategies.baselines import CompressedFedAvg, GradientCompression
from strategies.received import LARGEST

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE, CLASSES, HONEST, SIZE = (1, 4, 4), 2, 3, 20
ASKED, ROUNDS = 10, 3  # samples in a round
LOSSLESS = CodecOptions("lossless")
RNG = partial(np.random.default_rng, 7)

Entries = dict[str, Any]
Alter = Callable[[Entries], Entries]


def images(count: int = SIZE, seed: int = 7) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    samples = rng.integers(0, 100, (count, *SHAPE)) + 100 * labels[:, None, None, None]
    return samples.astype(np.uint8), labels


def source(seed: int = 7) -> ArraySource:
    return ArraySource(*images(seed=seed), CLASSES, 0.0, 255.0)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, CLASSES))


def normalized() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, CLASSES)
    return nn.Sequential(*layers)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def honest(seed: int) -> Client:
    return lambda message, context: train(message, context, source(seed), model)


def is_question(message: Message) -> bool:
    config = message.content["config"]
    return isinstance(config, ConfigRecord) and config["mode"] == "describe"


def with_entries(reply: Message, entries: Mapping[str, Any]) -> Message:
    """A reply whose own entries are others."""
    records = {"payload": ConfigRecord(dict(entries))}
    return Message(RecordDict(records), reply_to=reply)


def altered(client: Client, alter: Alter) -> Client:
    """A client that alters what it would say of its samples, once it is agreed on what they are."""

    def answer(message: Message, context: Context) -> Message:
        reply = client(message, context)
        if is_question(message):
            return reply
        payload, metrics = reply.content["payload"], reply.content.get("metrics")
        assert isinstance(payload, ConfigRecord)
        numbers = metrics if isinstance(metrics, MetricRecord) else {}
        changed = alter({**numbers, **payload})
        reply.content["payload"] = ConfigRecord(changed)
        if "metrics" in reply.content:
            del reply.content["metrics"]
        return reply

    return answer


def replay(**options: Any) -> QuantizedDataReplay:
    settings: Entries = {
        "codec": LOSSLESS,
        "samples_per_round": ASKED,
        "server_steps": 4,
        "server_batch_size": 16,
        "device": "cpu",
        "seed": 3,
    }
    return QuantizedDataReplay(options.pop("model", model)(), sgd, **{**settings, **options})


def streaming(**options: Any) -> QuantizedDataStreaming:
    settings: Entries = {"codec": LOSSLESS, "batch_size": ASKED, "device": "cpu", "seed": 3}
    return QuantizedDataStreaming(options.pop("model", model)(), sgd, **{**settings, **options})


STRATEGIES: Mapping[str, Callable[..., Any]] = {"replay": replay, "streaming": streaming}


def parameters_of(strategy: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in strategy.model.state_dict().items()}


def run(strategy: Any, clients: list[Client], rounds: int = ROUNDS) -> dict[str, Tensor]:
    strategy.start(InProcessGrid(clients), num_rounds=rounds)
    return parameters_of(strategy)


def check_refused(
    make: Callable[[], Any], honest_clients: list[Client], hostile: Client, causes: set[str]
) -> Any:
    """Check that each message of a hostile client is refused, and costs the others nothing."""
    alone, beside = make(), make()
    expected = run(alone, honest_clients)
    found = run(beside, [*honest_clients, hostile])
    assert set(beside.failures) == causes and beside.failures.total() == ROUNDS
    if causes != {"fit"}:  # which shows when the model sees them
        assert beside.book.samples_sent == alone.book.samples_sent
    assert beside.steps_taken == alone.steps_taken
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    return beside


# Samples


def spec(**changes: Any) -> SampleSpec:
    return replace(SampleSpec(SHAPE, "uint8", 0, 255, CLASSES, codec=LOSSLESS), **changes)


def payload(count: int = 1, kind: SampleSpec | None = None, **given: Any) -> SamplePayload:
    samples, labels = images(count)
    kind = kind or spec()
    return encode_samples(samples.astype(kind.dtype), labels, kind, **given)


def sends(*payloads: SamplePayload | bytes, **changes: Any) -> Alter:
    """An alteration: these payloads instead of the client's own."""
    data = [p if isinstance(p, bytes) else p.to_bytes() for p in payloads]
    count = sum(SamplePayload.from_bytes(part, _ANY).count for part in data)

    def alter(entries: Entries) -> Entries:
        other: Entries = {"samples": data[0], "num-sent": count, "num-examples": count}
        if data[1:]:
            other["more"] = data[1:]
        own = {key: value for key, value in entries.items() if key != "fingerprints"}
        return {**own, **other, **{k.replace("_", "-"): v for k, v in changes.items()}}

    return alter


class _Any:
    """Limits that nothing is beyond."""

    samples = values = 1 << 62

    def too_dense(self, *_: Any) -> bool:
        return False


_ANY: Any = _Any()
FLOATS = spec(dtype="float32")
ROUNDED = CodecOptions("columns", quantizer="stochastic")


def far_away() -> SamplePayload:
    """Columns in steps of 2**60, of which the symbols are few."""
    kind = spec(codec=ROUNDED)
    honest = payload(4, kind)
    exponents, table = np.full(16, 120), RNG().integers(0, 9, (4, 16))
    values = columns._encode_each(table, exponents)
    return replace(honest, sections={**honest.sections, "values": values})


def short(kind: SampleSpec = FLOATS) -> SamplePayload:
    """A payload whose values end early."""
    full = payload(8, kind)
    values = full.sections["values"]
    return replace(full, sections={**full.sections, "values": values[: len(values) // 2]})


SAMPLES: Mapping[str, tuple[str, Alter, Entries]] = {
    "floats in the range of bytes": ("range", sends(payload(4, FLOATS)), {}),
    "a range of 1e30": ("range", sends(payload(4, spec(high=1e30))), {}),
    "5,000 samples": ("count", sends(payload(5000), num_examples=ASKED), {}),
    "a payload eight times": ("duplicate", sends(*[payload()] * 8), {}),
    "weights of 256": ("weights", sends(payload(4, inclusion=np.ones(4, int))), {}),
    "weights beside the top ones": (
        "weights",
        sends(payload(4, inclusion=np.ones(4, int))),
        {"importance": "random", "selection": "top"},
    ),
    "larger weights than were drawn": (
        "weights",
        sends(payload(4, inclusion=np.ones(4, int))),
        {"importance": "loss", "selection": "probability", "keep_rate": 0.5},
    ),
    "a lossless codec": ("codec", sends(payload(4)), {"codec": CodecOptions("dct")}),
    "a finer step": (
        "codec",
        sends(payload(4, spec(codec=CodecOptions("dct", step=0.01)))),
        {"codec": CodecOptions("dct")},
    ),
    "samples 10**15 ranges away": ("payload", sends(far_away()), {"codec": ROUNDED}),
    "more bytes than the budget": ("budget", sends(payload(9)), {"uplink_budget": 150}),
    "a stream that ends early": ("payload", sends(short(spec())), {}),
    "a million samples in 50 bytes": (
        "payload",
        sends(SamplePayload(spec(), 1 << 20, {})),
        {},
    ),
    "more examples than exist": ("count", sends(payload(2), num_sent=3), {}),
    "bytes of no payload": ("payload", lambda entries: {**entries, "samples": b"QD" * 33}, {}),
}


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("kind", STRATEGIES)
def test_samples(kind: str, name: str) -> None:
    cause, alter, options = SAMPLES[name]
    make = partial(STRATEGIES[kind], **options)
    clients = [honest(seed) for seed in range(HONEST)]
    strategy = check_refused(make, clients, altered(honest(7), alter), {cause})
    if kind == "replay" and options.get("uplink_budget", 0) == 0:
        assert len(strategy.bank) == HONEST * SIZE or options.get("keep_rate")


@pytest.mark.parametrize("kind", STRATEGIES)
def test_an_honest_client_whose_images_are_floats_is_told(kind: str) -> None:
    samples, labels = images()
    other = ArraySource(samples.astype(np.float32), labels, CLASSES, 0.0, 255.0)
    clients = [honest(seed) for seed in range(HONEST)]
    check_refused(
        STRATEGIES[kind],
        clients,
        lambda message, context: train(message, context, other, model),
        {"range"},
    )


@pytest.mark.parametrize("kind", STRATEGIES)
def test_floats_that_the_model_sees_alike_are_taken(kind: str) -> None:
    samples, labels = images()
    other = ArraySource(samples.astype(np.float32) / 255, labels, CLASSES, 0.0, 1.0)
    clients = [honest(seed) for seed in range(HONEST)]
    strategy = STRATEGIES[kind]()
    run(strategy, [*clients, lambda message, context: train(message, context, other, model)])
    assert not strategy.failures
    if kind == "replay":
        assert len(strategy.bank) == (HONEST + 1) * SIZE


def check_all_arrive(make: Callable[..., Any], samples: NDArray[np.uint8], **options: Any) -> None:
    """Check that images of which a byte stands for thousands of values come, in many payloads."""
    other = ArraySource(samples, np.zeros(len(samples), np.int64), CLASSES, 0.0, 255.0)

    def small() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(768, CLASSES))

    strategy = make(model=small, **options)
    grid = InProcessGrid([lambda message, context: train(message, context, other, small)])
    strategy.start(grid, num_rounds=1)
    assert not strategy.failures and strategy.book.samples_sent == len(samples)
    (reply,) = grid.replies[0]
    record = reply.content["payload"]
    assert isinstance(record, ConfigRecord) and "more" in record


@pytest.mark.parametrize("codec", ["dct", "columns", "lossless"])
def test_black_images_all_arrive(codec: str) -> None:
    black = np.zeros((300, 3, 16, 16), np.uint8)
    options = {"codec": CodecOptions(codec), "refinement": "fp32", "batch_size": 300}
    check_all_arrive(streaming, black, **options)


@pytest.mark.parametrize("codec", ["dct", "columns"])
def test_images_that_are_black_once_they_are_coded_all_arrive(codec: str) -> None:
    nearly = np.zeros((300, 3, 16, 16), np.uint8)
    nearly.reshape(300, -1)[np.arange(300), np.arange(300)] = 1  # so that they are not duplicates
    options = CodecOptions(codec, relative_to="range", step=4.0)
    check_all_arrive(replay, nearly, codec=options, samples_per_round=0, identity_bytes=8)


def test_a_node_sends_no_more_than_it_has() -> None:
    rounds = 6

    def insatiable(message: Message, context: Context) -> Message:
        reply = honest(7)(message, context)
        if is_question(message):
            return reply
        config = message.content["config"]
        assert isinstance(config, ConfigRecord)
        seed = config["server-round"]
        assert isinstance(seed, int)
        samples, labels = images(ASKED, seed=100 + seed)
        other = encode_samples(samples, labels, spec())
        entries = sends(other, remaining=ASKED)({"client": HONEST})
        return with_entries(reply_to(message), entries)

    def reply_to(message: Message) -> Message:
        return message

    strategy = replay()
    run(strategy, [*[honest(seed) for seed in range(HONEST)], insatiable], rounds)
    # One reply beyond what it has, since a node that lost its memory sends again what is there.
    assert strategy.failures == {"count": rounds - SIZE // ASKED - 1}
    assert len(strategy.bank) == (HONEST + 1) * SIZE + ASKED


def test_replayed_messages_are_in_the_bank_once() -> None:
    first: list[Entries] = []

    def stuck(entries: Entries) -> Entries:
        first.append(entries)
        return first[0]

    strategy = replay()
    run(strategy, [*[honest(seed) for seed in range(HONEST)], altered(honest(7), stuck)], 8)
    assert len(strategy.bank) == HONEST * SIZE + ASKED


@pytest.mark.parametrize("kind", STRATEGIES)
@pytest.mark.parametrize("error", [KeyError, TypeError, ValueError, AssertionError])
def test_a_criterion_that_fails_on_one_client(kind: str, error: type[Exception]) -> None:
    def picky(outputs: Tensor, targets: Tensor) -> Tensor:
        if (targets == CLASSES).any():
            raise error("class 2")
        return nn.functional.cross_entropy(outputs, targets)

    def three_classes() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES + 1))

    samples, labels = images()
    other = ArraySource(samples, labels + 1, CLASSES + 1, 0.0, 255.0)
    make = partial(
        STRATEGIES[kind],
        model=three_classes,
        criterion=picky,
        samples=replace(spec(), codec=CodecOptions()),
    )
    clients = [honest(seed) for seed in range(HONEST)]
    alone, beside = make(), make()
    expected = run(alone, clients)
    found = run(beside, [*clients, lambda message, context: train(message, context, other, model)])
    assert set(beside.failures) == {"fit"}
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_targets_that_make_the_loss_infinite() -> None:
    def regression(scale: float, seed: int) -> Client:
        samples, labels = images(seed=seed)
        targets = labels.astype(np.float32) * np.float32(scale)
        floats = ArraySource(samples, targets, 0, 0.0, 255.0)
        return lambda message, context: train(message, context, floats, model)

    def one_output() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 1), nn.Flatten(0))

    make = partial(replay, model=one_output, criterion=nn.MSELoss())
    clients = [regression(1, seed) for seed in range(HONEST)]
    check_refused(make, clients, regression(1e30, 7), {"fit"})


def test_refinements_beyond_all_gradients() -> None:
    size = sum(parameter.numel() for parameter in model().parameters())
    huge = [np.full(size, 1e30, np.float32)]
    data, _ = make_compressor("fp32").compress(huge, None, RNG())
    make = partial(streaming, refinement="fp32", codec=CodecOptions("dct"))
    clients = [honest(seed) for seed in range(HONEST)]
    hostile = altered(honest(7), lambda entries: {**entries, "refinement": data})
    check_refused(make, clients, hostile, {"refinement"})


# Models and gradients


def averaging(**options: Any) -> CompressedFedAvg:
    settings: Entries = {
        "local_steps": 2,
        "learning_rate": lambda _: 0.1,
        "batch_size": 5,
        "min_available_nodes": HONEST,
        "client_key": "partition",
        "device": "cpu",
        "seed": 3,
    }
    return CompressedFedAvg(options.pop("model", model)(), **{**settings, **options})


def gradients(**options: Any) -> GradientCompression:
    settings: Entries = {
        "batch_size": 5,
        "client_key": "partition",
        "compression": Compression("fp32"),
        "device": "cpu",
        "seed": 3,
    }
    return GradientCompression(options.pop("model", model)(), sgd, **{**settings, **options})


def locally(seed: int, make: Callable[[], nn.Module] = model, how: Any = train_local) -> Client:
    return lambda message, context: how(message, context, source(seed), make)


def header(descr: str, shape: str, version: bytes = b"\x01\x00") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text


BYTES_OF_ARRAYS: Mapping[str, tuple[str, bytes]] = {
    "terabytes": ("shape", header("'<f4'", "(1099511627776,)")),
    "no token": ("record", header("'<f4'", "(8, 16") + bytes(512)),
    "nested": ("record", header("'<f4'", "(" * 900 + ")" * 900)),
    "a zip archive": ("record", b"PK\x03\x04" + bytes(600)),
    "an empty zip": ("record", b"PK\x05\x06" + bytes(18)),
    "a pickle": ("record", b"\x80\x04K\x01." + bytes(600)),
    "objects": ("record", header("'|O'", "(8, 16)") + bytes(1024)),
    "a structure": ("record", header("[('a', '<f4')]", "(8, 16)") + bytes(512)),
    "another type": ("shape", header("'<f8'", "(8, 16)") + bytes(1024)),
    "another order of bytes": ("shape", header("'>f4'", "(8, 16)") + bytes(512)),
    "too few values": ("record", header("'<f4'", "(8, 16)") + bytes(508)),
    "too many values": ("record", header("'<f4'", "(8, 16)") + bytes(516)),
    "a sum": ("record", header("'<f4'", "(8, 8 + 8)") + bytes(512)),
    "a longer header": ("record", b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + bytes(512)),
    "version 9": ("record", header("'<f4'", "(8, 16)", b"\x09\x00") + bytes(512)),
    "nothing": ("record", b""),
}


def with_array(client: Client, change: Callable[[Array], Array]) -> Client:
    """A client that changes the first array of its model."""

    def answer(message: Message, context: Context) -> Message:
        reply = client(message, context)
        for key, record in reply.content.array_records.items():
            name = next(iter(record))
            reply.content[key] = ArrayRecord({**record, name: change(record[name])})
        return reply

    return answer


@pytest.mark.parametrize("name", BYTES_OF_ARRAYS)
def test_arrays_that_numpy_is_not_to_load(name: str) -> None:
    cause, data = BYTES_OF_ARRAYS[name]
    hostile = with_array(
        locally(7), lambda array: Array(array.dtype, array.shape, array.stype, data)
    )
    check_refused(averaging, [locally(seed) for seed in range(HONEST)], hostile, {cause})


@pytest.mark.parametrize("kind", STRATEGIES)
@pytest.mark.parametrize("name", ["no token", "a zip archive", "terabytes"])
def test_arrays_in_a_mixed_federation(kind: str, name: str) -> None:
    cause, data = BYTES_OF_ARRAYS[name]
    hostile = with_array(
        locally(7), lambda array: Array(array.dtype, array.shape, array.stype, data)
    )
    make = partial(STRATEGIES[kind], mixed=True)
    check_refused(make, [honest(seed) for seed in range(HONEST)], hostile, {cause})


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "bool", "float16"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 4), (2, 3, 4, 5)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_numpy_are_read(dtype: str, shape: tuple[int, ...], order: Any) -> None:
    from strategies.received_arrays import read_array

    values = np.asarray(RNG().integers(0, 2, shape).astype(dtype), order=order)
    found = read_array("a", Array(values), Array(np.zeros(shape, dtype)))
    np.testing.assert_array_equal(found, values)
    assert found.dtype == values.dtype and found.shape == shape


@pytest.mark.parametrize("stype", ["pickle", "", "torch"])
def test_arrays_stored_otherwise(stype: str) -> None:
    hostile = with_array(
        locally(7), lambda array: Array(array.dtype, array.shape, stype, array.data)
    )
    check_refused(averaging, [locally(seed) for seed in range(HONEST)], hostile, {"record"})


@pytest.mark.parametrize("value", [3e38, -1e30, 2 * LARGEST])
def test_models_that_sum_to_infinity(value: float) -> None:
    def huge(array: Array) -> Array:
        return Array(np.full(array.shape, value, np.float32))

    hostile = with_array(locally(7), huge)
    check_refused(averaging, [locally(seed) for seed in range(HONEST)], hostile, {"too-large"})


@pytest.mark.parametrize("examples", [2**63 - 1, (1 << 20) + 1, 0])
def test_examples_that_own_the_average(examples: int) -> None:
    def alter(entries: Entries) -> Entries:
        return {**entries, "num-examples": examples}

    hostile = altered(locally(7), alter)
    check_refused(averaging, [locally(seed) for seed in range(HONEST)], hostile, {"count"})
    most = partial(averaging, max_examples=SIZE)
    clients = [locally(seed) for seed in range(HONEST)]
    greedy = altered(locally(7), lambda entries: {**entries, "num-examples": SIZE + 1})
    check_refused(most, clients, greedy, {"count"})


@pytest.mark.parametrize("examples", [2**63 - 1, 6])
def test_examples_of_a_gradient(examples: int) -> None:
    hostile = altered(
        locally(7, how=train_gradient), lambda entries: {**entries, "num-examples": examples}
    )
    clients = [locally(seed, how=train_gradient) for seed in range(HONEST)]
    check_refused(gradients, clients, hostile, {"count"})


@pytest.mark.parametrize("kind", STRATEGIES)
def test_examples_in_a_mixed_federation(kind: str) -> None:
    def owning(message: Message, context: Context) -> Message:
        reply = locally(7)(message, context)
        del reply.content["payload"]
        reply.content["metrics"] = MetricRecord({"num-examples": 2**63 - 1})
        return reply

    make = partial(STRATEGIES[kind], mixed=True)
    check_refused(make, [honest(seed) for seed in range(HONEST)], owning, {"count"})


def test_huge_gradients_changes_and_statistics() -> None:
    shapes = [tuple(parameter.shape) for parameter in model().parameters()]
    huge = [np.full(shape, 1e30, np.float32) for shape in shapes]
    data, _ = joined(make_compressor("fp32")).compress(huge, None, RNG())
    clients = [locally(seed, how=train_gradient) for seed in range(HONEST)]
    hostile = altered(locally(7, how=train_gradient), lambda entries: {**entries, "gradient": data})
    check_refused(gradients, clients, hostile, {"gradient"})
    clients = [locally(seed) for seed in range(HONEST)]
    hostile = altered(locally(7), lambda entries: {**entries, "delta": data})
    check_refused(partial(averaging, compression="fp32"), clients, hostile, {"delta"})
    measured = [np.full(part.shape, 1e30, np.float32) for part in statistics(normalized())]
    buffers = encode_statistics(measured)
    for make, how in ((gradients, train_gradient), (averaging, train_local)):
        clients = [locally(seed, normalized, how) for seed in range(HONEST)]
        hostile = altered(
            locally(7, normalized, how), lambda entries: {**entries, "buffers": buffers}
        )
        settings: Entries = {"model": normalized, "compression": Compression("fp32")}
        check_refused(partial(make, **settings), clients, hostile, {"buffers"})


# Norm clipping


@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
def test_one_client_moves_a_gradient_no_further_than_the_norm(clip_norm: float) -> None:
    shapes = [tuple(parameter.shape) for parameter in model().parameters()]
    large = [np.full(shape, 1e6, np.float32) for shape in shapes]
    data, _ = joined(make_compressor("fp32")).compress(large, None, RNG())
    clients = [locally(seed, how=train_gradient) for seed in range(HONEST)]
    hostile = altered(locally(7, how=train_gradient), lambda entries: {**entries, "gradient": data})
    strategy = gradients(clip_norm=clip_norm)
    before = parameters_of(strategy)
    after = run(strategy, [*clients, hostile], 1)
    moved = float(sum(((after[n] - before[n]) ** 2).sum() for n in before)) ** 0.5
    assert (moved <= 0.1 * 0.5 + 1e-6) is (clip_norm > 0)


@pytest.mark.parametrize("compression", ["none", "fp32"])
def test_one_client_moves_a_model_no_further_than_the_norm(compression: str) -> None:
    def huge(array: Array) -> Array:
        return Array(np.full(array.shape, 1e6, np.float32))

    shapes = [tuple(parameter.shape) for parameter in model().parameters()]
    large = [np.full(shape, 1e6, np.float32) for shape in shapes]
    data, _ = joined(make_compressor("fp32")).compress(large, None, RNG())
    changed = altered(locally(7), lambda entries: {**entries, "delta": data})
    hostile = with_array(locally(7), huge) if compression == "none" else changed
    strategy = averaging(clip_norm=0.25, compression=compression)
    before = parameters_of(strategy)
    after = run(strategy, [*[locally(seed) for seed in range(HONEST)], hostile], 1)
    moved = float(sum(((after[n] - before[n]) ** 2).sum() for n in before)) ** 0.5
    assert 0 < moved <= 0.25 + 1e-6


@pytest.mark.parametrize("kind", STRATEGIES)
def test_a_norm_beyond_all_changes_nothing(kind: str) -> None:
    clients = [honest(seed) for seed in range(HONEST)]
    plain = run(STRATEGIES[kind](), clients)
    clipped = run(STRATEGIES[kind](clip_norm=1e9), clients)
    assert all(torch.equal(plain[name], clipped[name]) for name in plain)
