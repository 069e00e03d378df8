"""Tests of fl_app.config."""

from typing import Any

import pytest

from codec import CodecOptions, Compression
from codec.messages import (
    REQUESTS,
    GradientOptions,
    GradientRequest,
    LocalOptions,
    ReplayOptions,
    ReplayRequest,
    StreamingOptions,
    StreamingRequest,
)
from codec.options import Options, values_of
from fl_app.config import ConfigError, RunConfig, described_keys


def test_empty_config_gives_the_defaults() -> None:
    assert RunConfig.from_run_config({}) == RunConfig()


def test_keys_are_kebab_case_and_codec_options_are_keys() -> None:
    config = RunConfig.from_run_config({"num-rounds": 3, "keep-rate": 0.5, "step": 0.5})
    assert (config.num_rounds, config.keep_rate) == (3, 0.5)
    assert config.codec == CodecOptions(step=0.5)


def test_config_survives_its_own_mapping() -> None:
    config = RunConfig.from_run_config({"dataset": "cifar10", "step": 0.3, "tilt": 0.1})
    assert RunConfig.from_run_config(config.to_run_config()) == config
    assert config.to_run_config()["tilt"] == 0.1


def test_an_integer_is_a_number() -> None:
    assert isinstance(RunConfig.from_run_config({"learning-rate": 1}).learning_rate, float)


@pytest.mark.parametrize(
    ("key", "value", "legal"),
    [
        ("num-rounds", 0, ">= 1"),
        ("num-rounds", 2.0, "a whole number"),
        ("num-rounds", True, "a whole number"),
        ("keep-rate", "0.5", "a number"),
        ("keep-rate", 0.0, "in (0, 1]"),
        ("keep-rate", 1.5, "in (0, 1]"),
        ("learning-rate", float("nan"), "> 0"),
        ("strategy", "fedprox", "one of replay, streaming, gradient, fedavg"),
        ("data-dir", 7, "a string"),
        ("step", "coarse", "a number"),
        ("seed", -1, "in [0, "),
    ],
)
def test_illegal_value_is_named_with_key_and_legal_values(
    key: str, value: object, legal: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_run_config({key: value})
    assert str(caught.value).startswith(f"{key} = {value!r} must be {legal}")


def test_illegal_codec_option_is_named() -> None:
    with pytest.raises(ConfigError, match=r"step = -1\.0 must be in \[1e-05, 100\]"):
        RunConfig.from_run_config({"step": -1.0})


def test_unknown_key_is_met_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="no key 'learning_rate'; did you mean 'learning-rate'"):
        RunConfig.from_run_config({"learning_rate": 0.1})
    with pytest.raises(ConfigError, match="no key 'zzz'; known keys: augment, "):
        RunConfig.from_run_config({"zzz": 0.1})


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        (
            {"strategy": "replay", "refinement": "qsgd"},
            "refinement = 'qsgd' needs strategy = 'streaming'",
        ),
        (
            {"strategy": "streaming", "keep-rate": 0.5},
            "keep-rate = 0.5 contradicts importance all",
        ),
        (
            {"strategy": "gradient", "majority-vote": True},
            "majority-vote needs compressor sign, not 'fp32'",
        ),
        (
            {"strategy": "gradient", "compressor": "qsgd", "momentum-correction": 0.9},
            "momentum-correction = 0.9 needs compressor top-k or majority-vote, not 'qsgd'",
        ),
        (
            {"compressor": "eden", "compressor-bits": 5},
            "compressor-bits = 5 must be 1, 2, 3 or 4, or below 1, for eden",
        ),
    ],
)
def test_keys_that_contradict_each_other_are_refused(entries: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_run_config(entries)
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize(
    ("strategy", "selection", "rule"),
    [
        ("replay", "auto", "top"),
        ("streaming", "auto", "probability"),
        ("replay", "probability", "probability"),
        ("streaming", "top", "top"),
    ],
)
def test_selection_rule_follows_the_strategy(strategy: str, selection: str, rule: str) -> None:
    request = RunConfig(strategy=strategy, selection=selection).request()
    assert isinstance(request, StreamingRequest | ReplayRequest)
    assert request.rule == rule


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("streaming", StreamingOptions),
        ("replay", ReplayOptions),
        ("gradient", GradientOptions),
        ("fedavg", LocalOptions),
    ],
)
def test_a_request_asks_for_what_the_config_says(strategy: str, options: type[Options]) -> None:
    config = RunConfig(
        strategy=strategy,
        seed=9,
        codec=CodecOptions(step=0.25),
        compression=Compression("qsgd", bits=3),
        batch_size=7,
        samples_per_round=6,
        local_steps=5,
    )
    request = config.request()
    assert type(request) is REQUESTS[strategy] and request.seed == 9
    assert values_of(request, options) == values_of(config, options)


def test_gradients_are_sent_losslessly_unless_they_are_compressed() -> None:
    plain, compressed = (
        RunConfig(strategy="gradient", compression=Compression(kind)).request()
        for kind in ("none", "qsgd")
    )
    assert isinstance(plain, GradientRequest) and plain.compression.kind == "fp32"
    assert isinstance(compressed, GradientRequest) and compressed.compression.kind == "qsgd"


def test_every_key_is_described() -> None:
    described = described_keys()
    assert {d.key: d.default for d in described} == RunConfig().to_run_config()
    assert len(described) == len(RunConfig().to_run_config())  # each key once
    assert all(d.doc and d.legal and not d.doc.endswith(".") for d in described)
