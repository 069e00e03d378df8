"""Tests of fl_app.config."""

from dataclasses import fields

import pytest

from codec import CodecOptions
from fl_app.config import ConfigError, RunConfig


def test_empty_config_gives_the_defaults() -> None:
    assert RunConfig.from_run_config({}) == RunConfig()


def test_keys_are_kebab_case_and_codec_options_are_keys() -> None:
    config = RunConfig.from_run_config({"num-rounds": 3, "keep-rate": 0.5, "step": 0.5})
    assert (config.num_rounds, config.keep_rate) == (3, 0.5)
    assert config.codec == CodecOptions(step=0.5)


def test_config_survives_its_own_mapping() -> None:
    config = RunConfig.from_run_config({"dataset": "cifar10", "step": 0.3, "dead-zone": 0.1})
    assert RunConfig.from_run_config(config.to_run_config()) == config
    assert config.to_run_config()["dead-zone"] == 0.1


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
        ("strategy", "fedprox", "one of replay, sgd"),
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
    with pytest.raises(ConfigError, match=r"step is -1\.0; legal range"):
        RunConfig.from_run_config({"step": -1.0})


def test_unknown_key_is_met_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="no key 'learning_rate'; did you mean 'learning-rate'"):
        RunConfig.from_run_config({"learning_rate": 0.1})
    with pytest.raises(ConfigError, match="no key 'zzz'; known keys: augment, "):
        RunConfig.from_run_config({"zzz": 0.1})


def test_keys_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="refinement = 'qsgd' needs mode sgd"):
        RunConfig.from_run_config({"strategy": "replay", "refinement": "qsgd"})
    with pytest.raises(ConfigError, match=r"keep-rate = 0\.5 contradicts importance all"):
        RunConfig.from_run_config({"strategy": "sgd", "keep-rate": 0.5})


def test_selection_rule_follows_the_strategy() -> None:
    assert RunConfig(strategy="replay").selection_rule == "budget"
    assert RunConfig(strategy="sgd").selection_rule == "probability"
    assert RunConfig(selection="threshold").selection_rule == "threshold"


def test_every_field_is_documented() -> None:
    assert all(f.metadata.get("doc") for f in fields(RunConfig) if f.name != "codec")
