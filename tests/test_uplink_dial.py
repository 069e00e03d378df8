"""One budget for a whole run: what is planned, who is asked for what, and that it is met."""

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message
from hypothesis import given
from hypothesis import strategies as st
from images import fields
from inprocess_grid import Client, InProcessGrid, is_question
from late_grid import LateGrid, clock_of
from torch import nn

from clients import ArraySource, train
from codec import CodecOptions, OptionError, SampleSpec
from codec.messages import Description
from codec.samples.rate_curve import RateCurve
from fl_app.config import ConfigError, RunConfig
from fl_app.server_app import budget_of
from strategies import QuantizedDataReplay
from strategies.budget_law import LAW, Law, best_plan
from strategies.uplink_dial import UplinkDial

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE, CLASSES = (3, 12, 12), 4
SIZES = (260, 140, 90, 40)
SPEC = SampleSpec(SHAPE, "uint8", 0, 255, CLASSES)


# The law


def power_curve(scale: float = 40.0, power: float = 0.9, loss: float = 0.1) -> RateCurve:
    steps = np.geomspace(0.1, 3, 7)
    sizes, losses = scale * steps**-power, np.minimum(loss * steps**1.3, 1)
    return RateCurve.of(list(zip(steps, sizes, losses, strict=True)))


@given(
    st.floats(1e3, 1e7),
    st.integers(100, 100_000),
    st.floats(5, 200),
    st.floats(0.01, 0.3),
    st.floats(0.2, 1.0),
    st.floats(0.3, 2.0),
    st.floats(0.1, 30),
)
def test_the_plan_is_where_a_search_of_all_steps_finds_the_least_error(
    budget: float, total: int, scale: float, loss: float, a: float, b: float, ratio: float
) -> None:
    curve, law = power_curve(scale, loss=loss), Law(a, b, ratio)
    plan = best_plan(curve, budget, total, beside=2.0, law=law)
    steps = np.geomspace(0.1, 3, 997)
    sizes = np.exp(np.interp(np.log(steps), np.log(curve.settings), np.log(curve.sizes)))
    lost = np.exp(np.interp(np.log(steps), np.log(curve.settings), np.log(curve.losses)))
    samples = np.minimum(budget / (sizes + 2), total)
    errors = law.excess(samples, lost)
    reached = law.excess(np.array([plan.samples + 1.0]), np.array([plan.lost]))[0]
    assert reached <= errors.min() * 1.02
    assert plan.samples <= total and plan.samples * (plan.bytes_per_sample + 2) <= budget + 1


def test_more_budget_buys_more_samples_and_then_finer_ones() -> None:
    plans = [best_plan(power_curve(), budget, 50_000) for budget in np.geomspace(5e4, 5e7, 20)]
    samples, steps = [p.samples for p in plans], [p.setting for p in plans]
    assert samples == sorted(samples) and steps == sorted(steps, reverse=True)
    assert plans[-1].sends_all and steps[-1] == pytest.approx(0.1)
    assert not plans[0].sends_all and 0 < LAW.a < 1


# Who is asked for what


def dial(budget: int, sizes: Sequence[int], curve: RateCurve | None = None) -> UplinkDial:
    found = UplinkDial(budget, CodecOptions(), 1.0, 2)
    data = (curve or power_curve()).to_bytes()
    for node_id, size in enumerate(sizes):
        found.describe(node_id, Description(client=node_id, num_examples=size, curve=data))
    return found


@given(
    st.lists(st.integers(1, 5000), min_size=1, max_size=12),
    st.integers(30_000, 1_000_000),
    st.integers(1, 5),
)
def test_grants_follow_the_numbers_of_samples_and_keep_the_budget(
    sizes: list[int], budget: int, rounds_left: int
) -> None:
    found, nodes = dial(budget, sizes), list(range(len(sizes)))
    asked = found.grant(nodes, 3000, (), set(), rounds_left, all_now=False)
    grants = [found.granted(node_id) for node_id in asked]
    assert sum(grant.all_bytes for grant in grants if grant) <= 1.02 * budget - 3000 + len(nodes)
    assert set(nodes) - set(asked) <= {n for n in nodes if sizes[n] * budget < 500 * sum(sizes)}
    for (n, one), (m, other) in itertools.pairwise(zip(asked, grants, strict=True)):
        assert one is not None and other is not None
        assert one.payload_bytes * sizes[m] == pytest.approx(
            other.payload_bytes * sizes[n], abs=3 * max(sizes)
        )


def test_a_reply_that_is_out_keeps_what_it_was_granted() -> None:
    found = dial(100_000, [500, 500, 500])
    found.grant([0, 1, 2], 0, (), set(), 3, all_now=False)
    out = found.granted(2)
    assert out is not None
    for node_id in (0, 1):
        grant = found.granted(node_id)
        assert grant is not None
        found.note(node_id, grant.all_bytes, grant.payload_bytes, 300, 200)
    spent = 2 * out.all_bytes
    found.grant([0, 1], spent, {2}, set(), 2, all_now=False)
    grants = [found.granted(node_id) for node_id in (0, 1, 2)]
    assert grants[2] == out
    assert spent + sum(grant.all_bytes for grant in grants if grant) <= 100_000 + 3


def test_few_nodes_are_asked_where_the_budget_is_small() -> None:
    found = dial(30_000, [100] * 50)
    asked = found.worth_asking(range(50), 2_000, {0: 600, 1: 500}, (), 2)
    assert 1 <= len(asked) <= 4 and not {0, 1} & set(asked)
    assert len(dial(3_000_000, [100] * 50).worth_asking(range(50), 2_000, {}, (), 2)) == 50
    assert len(found.worth_asking(range(50), 2_000, {}, (), 1)) == 50


def test_a_budget_below_a_single_sample_is_refused() -> None:
    with pytest.raises(OptionError, match=r"uplink_budget_total = 5000 bytes is less than"):
        dial(5_000, [10, 10]).grant([0, 1], 4_000, (), set(), 3, all_now=False)


def test_a_fleet_that_does_not_say_what_samples_take_is_refused() -> None:
    found = UplinkDial(10**6, CodecOptions(), 1.0, 2)
    found.describe(0, Description(client=0, num_examples=10, curve=b"no curve"))
    with pytest.raises(OptionError, match="needs to know what samples take"):
        found.grant([0], 0, (), set(), 3, all_now=False)


# Options


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"uplink_budget": 900}, "uplink_budget = 900 contradicts uplink_budget_total = 2000000"),
        ({"samples_per_round": 9}, "samples_per_round = 9 contradicts uplink_budget_total"),
        ({"mixed": True}, "mixed = True contradicts uplink_budget_total"),
        ({"uplink_budget_total": "2Mb"}, r"uplink_budget_total = '2Mb' must be a number of bytes"),
        ({"uplink_budget_total": -1}, "uplink_budget_total = -1 must be >= 0"),
        ({"uplink_budget_total": 1.5}, "uplink_budget_total = 1.5 must be a whole number"),
    ],
)
def test_what_contradicts_a_budget_is_named(options: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        strategy(**{"uplink_budget_total": "2MB", **options})


@pytest.mark.parametrize(
    ("text", "size"),
    [("2MB", 2_000_000), ("300kB", 300_000), ("0.3 MB", 300_000), ("1GB", 10**9), (77, 77)],
)
def test_a_budget_may_be_text(text: Any, size: int) -> None:
    made = strategy(uplink_budget_total=text)
    assert made.dial is not None and made.dial.budget == size
    config = RunConfig.from_run_config({"uplink-budget-total": text})
    assert config.uplink_budget_total == size == config.to_run_config()["uplink-budget-total"]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"samples-per-round": 50}, "samples-per-round = 50 contradicts uplink-budget-total"),
        ({"uplink-budget": 50}, "uplink-budget = 50 contradicts uplink-budget-total"),
        ({"strategy": "streaming"}, "uplink-budget-total = 2000000 needs strategy = 'replay'"),
        ({"uplink-budget-total": "two"}, "uplink-budget-total = 'two' must be a number of bytes"),
    ],
)
def test_the_app_names_what_contradicts_a_budget(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        RunConfig.from_run_config({"uplink-budget-total": "2MB", **values})


# Runs


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(SHAPE)), CLASSES))


def sources(sizes: Sequence[int] = SIZES) -> list[ArraySource]:
    """Images of other contrast on each device."""
    found = []
    for number, size in enumerate(sizes):
        samples = fields(size, SHAPE, number)
        samples = (128 + (samples - 128.0) / (1 + 0.15 * number)).astype(np.uint8)
        labels = np.random.default_rng(number).integers(0, CLASSES, size)
        found.append(ArraySource(samples, labels, CLASSES, 0.0, 255.0))
    return found


def client(source: ArraySource) -> Client:
    return lambda message, context: train(message, context, source, network)


def grid_of(sizes: Sequence[int] = SIZES) -> InProcessGrid:
    return InProcessGrid([client(source) for source in sources(sizes)])


def strategy(**options: Any) -> QuantizedDataReplay:
    settings: dict[str, Any] = {"server_steps": 1, "device": "cpu", "samples": SPEC, "seed": 2}
    return QuantizedDataReplay(
        network, lambda p: torch.optim.SGD(p, lr=0.01), **{**settings, **options}
    )


def spent(made: QuantizedDataReplay) -> float:
    assert made.dial is not None
    return made.ledger.uplink_bytes / made.dial.budget


@pytest.mark.parametrize(
    ("sizes", "budget", "rounds"),
    [
        ((150, 100, 50), 8_000, 3),
        (SIZES, 11_000, 1),
        ((150, 100, 50), 24_000, 1),
        pytest.param((30,) * 6 + (200, 100, 60, 10), 40_000, 3, marks=pytest.mark.slow),
        pytest.param((700, 20, 150), 16_000, 2, marks=pytest.mark.slow),
        pytest.param((700, 20, 150), 60_000, 4, marks=pytest.mark.slow),
    ],
)
def test_the_whole_uplink_is_the_budget(
    sizes: Sequence[int], budget: int, rounds: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Within 3 %, whether it buys few samples, or all of them at a finer step."""
    made = strategy(uplink_budget_total=budget)
    with caplog.at_level(logging.INFO):
        made.start(grid_of(sizes), num_rounds=rounds)
    assert 0.97 <= spent(made) <= 1.03, made.ledger.sections()
    assert made.dial is not None and made.dial.plan is not None
    assert not made.failures
    assert f"budget {budget // 1000} kB: " in caplog.text
    assert f"uplink {made.ledger.uplink_bytes:,} of {budget:,} bytes" in caplog.text
    report = made.dial.report(made.ledger.uplink_bytes)
    assert budget_of(made) == {"budget": report} and not budget_of(strategy())
    assert report["spent"] == made.ledger.uplink_bytes and report["plan"]["samples"] > 0


def test_all_samples_are_refined_until_they_fill_the_budget() -> None:
    made = strategy(uplink_budget_total=25_000, identity_bytes=0)
    assert made.dial is not None
    made.start(grid_of((150, 100, 50)), num_rounds=2)
    plan = made.dial.plan
    assert plan is not None and plan.sends_all and plan.total == 300 and plan.setting > 0.1
    assert made.book.samples_sent >= 270 and 0.97 <= spent(made) <= 1.03


def test_what_the_finest_step_does_not_need_is_not_spent(caplog: pytest.LogCaptureFixture) -> None:
    made = strategy(uplink_budget_total="1MB")
    with caplog.at_level(logging.INFO):
        made.start(grid_of((40, 20, 10)), num_rounds=2)
    assert made.book.samples_sent == 70 and spent(made) < 0.1
    assert made.dial is not None and made.dial.codec.step == pytest.approx(0.1)
    assert "the rest is not spent" in caplog.text
    assert "have sent all their samples" in caplog.text


@pytest.mark.parametrize(
    ("codec", "budget"), [("webp", 14_000), ("webp", 24_000), ("lossless", 30_000)]
)
def test_codecs_without_a_step_keep_the_budget(codec: str, budget: int) -> None:
    """By their quality, or by the number of samples alone."""
    made = strategy(uplink_budget_total=budget, codec=codec)
    made.start(grid_of((150, 100)), num_rounds=2)
    assert made.dial is not None and made.dial.plan is not None and not made.failures
    assert 0.97 <= spent(made) <= 1.03, made.dial.words()


def _fails_in(rounds: Sequence[int], inner: Client) -> Client:
    def answer(message: Message, context: Context) -> Message:
        number = message.content.config_records["config"]["server-round"]
        if number in rounds and not is_question(message):
            raise OSError("connection lost")
        return inner(message, context)

    return answer


def test_what_a_node_does_not_send_others_do() -> None:
    devices = [client(source) for source in sources((300, 300, 300, 300))]
    devices[0] = _fails_in(range(1, 9), devices[0])
    made = strategy(uplink_budget_total=25_000)
    made.start(InProcessGrid(devices), num_rounds=4)
    assert 0.97 <= spent(made) <= 1.03 and made.failures["error"] >= 1


def test_a_share_of_the_nodes_a_round_keeps_the_total() -> None:
    made = strategy(uplink_budget_total=20_000, fraction_train=0.5, min_available_nodes=4)
    made.start(grid_of(), num_rounds=5)
    assert 0.97 <= spent(made) <= 1.03
    assert len(made.ledger.node_bytes()) >= 3


def test_evaluation_on_clients_is_a_part_of_the_budget() -> None:
    from flwr.app import MetricRecord, RecordDict

    def device(source: ArraySource) -> Client:
        def answer(message: Message, context: Context) -> Message:
            if message.metadata.message_type == "evaluate":
                metrics = MetricRecord({"accuracy": 0.5, "num-examples": len(source)})
                return Message(RecordDict({"metrics": metrics}), reply_to=message)
            return train(message, context, source, network)

        return answer

    made = strategy(uplink_budget_total=24_000, fraction_evaluate=1.0)
    made.start(InProcessGrid([device(source) for source in sources()]), num_rounds=4)
    assert 0.95 <= spent(made) <= 1.03


@pytest.mark.parametrize("quorum", [0.5, 1.0])
def test_late_replies_keep_what_they_were_granted(quorum: float) -> None:
    """The slowest device answers a round late: its share is not given to others meanwhile."""
    devices = [client(source) for source in sources((220, 220, 220))]
    grid = LateGrid(devices, lambda index, asked: 70.0 if index == 0 and asked > 1 else 1.0)
    with clock_of(grid):
        made = strategy(uplink_budget_total=20_000, quorum=quorum)
        made.start(grid, num_rounds=5, timeout=40)
    assert 0.97 <= spent(made) <= 1.03, made.ledger.sections()
    assert made.book.late >= 1 and not made.failures["budget"]


def test_a_run_that_goes_on_keeps_the_budget(tmp_path: Path) -> None:
    """What had arrived before is a part of it; nodes have other ids now."""

    def device(number: int, source: ArraySource) -> Client:
        folder = tmp_path / f"device-{number}"
        return lambda message, context: train(message, context, source, network, state_dir=folder)

    def grid(seed: int) -> InProcessGrid:
        devices = [device(*numbered) for numbered in enumerate(sources((150, 150, 150)))]
        return InProcessGrid(devices, seed=seed)

    def made() -> QuantizedDataReplay:
        bank = tmp_path / "bank.sqlite"
        return strategy(uplink_budget_total=14_000, bank=bank, fraction_train=0.5)

    first = made()
    first.start(
        grid(0), num_rounds=5, checkpoint=tmp_path, should_stop=lambda number, _: number == 1
    )
    assert spent(first) < 0.8
    first.close()
    second = made()
    assert first.dial is not None and second.dial is not None
    second.start(grid(1), num_rounds=5, checkpoint=tmp_path, resume=tmp_path)
    assert second.dial.plan == first.dial.plan
    assert 0.97 <= spent(second) <= 1.03, second.ledger.sections()
    assert len(second.bank) == second.book.samples_sent > first.book.samples_sent
    second.close()
