"""The options of the strategies: shown by Python's own tools, and refused with a hint."""

import inspect
import pydoc
import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from codec import CodecOptions, Compression, Refinement
from codec.messages import (
    BankTraining,
    GradientOptions,
    LocalOptions,
    MixedOptions,
    Participation,
    ReplayOptions,
    StreamingOptions,
)
from codec.options import Options, own_fields
from strategies import QuantizedDataReplay, QuantizedDataStreaming, ServerStrategy
from strategies.baselines import CompressedFedAvg, GradientCompression
from strategies.baselines.statistics import StatisticsOptions
from strategies.evaluation import EvaluationOptions

GROUPS: dict[type[ServerStrategy], tuple[type[Options], ...]] = {
    QuantizedDataStreaming: (StreamingOptions, Participation, EvaluationOptions, MixedOptions),
    QuantizedDataReplay: (
        ReplayOptions,
        BankTraining,
        Participation,
        EvaluationOptions,
        MixedOptions,
    ),
    GradientCompression: (GradientOptions, StatisticsOptions, Participation, EvaluationOptions),
    CompressedFedAvg: (LocalOptions, StatisticsOptions, Participation, EvaluationOptions),
}
_SGD = partial(torch.optim.SGD, lr=0.1)
every_strategy = pytest.mark.parametrize("kind", GROUPS, ids=lambda kind: kind.__name__)


def _make(kind: type[Any], **options: Any) -> Any:
    if kind is CompressedFedAvg:
        options = {"learning_rate": lambda _: 0.1, **options}
    else:
        options = {"optimizer": _SGD, **options}
    return kind(nn.Linear(3, 2), device="cpu", **options)


def _option_names(kind: type[ServerStrategy]) -> list[str]:
    return list(dict.fromkeys(name for group in GROUPS[kind] for name in own_fields(group)))


@every_strategy
def test_signature_shows_every_option_with_its_default(kind: type[ServerStrategy]) -> None:
    parameters = inspect.signature(kind).parameters
    assert next(iter(parameters)) == "model"
    assert all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    strategy = _make(kind)
    for group in GROUPS[kind]:
        for name in own_fields(group):
            shown = parameters[name]
            assert shown.kind is inspect.Parameter.KEYWORD_ONLY
            assert shown.default == getattr(group(), name)
            _make(kind, **{name: shown.default})  # the default is legal
    assert strategy.request.seed == parameters["seed"].default


@every_strategy
def test_help_documents_every_argument_once(kind: type[ServerStrategy]) -> None:
    text = pydoc.render_doc(kind, renderer=pydoc.plaintext)  # type: ignore[attr-defined]  # has it
    assert "**options" not in text.split("Methods defined here")[0]
    doc = inspect.getdoc(kind) or ""
    sections = re.findall(r"^([A-Z].*)\n-+$", doc, re.MULTILINE)
    assert sections[:2] == ["Parameters", "Other Parameters"]
    assert sections[-1] == "Raises"
    headers = re.findall(r"^([\w, ]+?)(?: : .*)?$", doc.split("Parameters\n", 1)[1], re.MULTILINE)
    documented = [name for header in headers for name in header.split(", ")]
    for name in inspect.signature(kind).parameters:
        assert documented.count(name) == 1, name
    assert max(map(len, doc.splitlines())) <= 100


def test_help_tells_type_legal_values_and_default() -> None:
    doc = inspect.getdoc(QuantizedDataStreaming) or ""
    for line in (
        "importance : {'all', 'random', 'loss', 'grad-norm', 'margin', 'entropy'}, default='all'",
        "keep_rate : float in (0, 1], default=1.0",
        "uplink_budget : int >= 0, default=0",
        "codec : CodecOptions or str, default='auto'",
        "refinement : Refinement or str, default='none'",
    ):
        assert f"\n{line}\n    " in doc


@every_strategy
@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("batch_sizes", "batch_size"),
        ("fraction_trian", "fraction_train"),
        ("on_rounds", "on_round"),
        ("devise", "device"),
    ],
)
def test_unknown_arguments_are_refused_with_a_hint(
    kind: type[ServerStrategy], name: str, nearest: str
) -> None:
    if nearest not in inspect.signature(kind).parameters:
        nearest = "server_batch_size"  # of replay
    message = f"unexpected keyword argument '{name}'; did you mean '{nearest}'?"
    with pytest.raises(TypeError, match=re.escape(message)):
        _make(kind, **{name: 1})


@every_strategy
def test_an_argument_like_no_other_is_answered_with_all(kind: type[ServerStrategy]) -> None:
    known = ", ".join(sorted(inspect.signature(kind).parameters))
    with pytest.raises(TypeError, match=f"unexpected keyword argument 'zzz'; known: {known}$"):
        _make(kind, zzz=1)


@every_strategy
def test_other_strategies_options_are_unknown(kind: type[ServerStrategy]) -> None:
    others = {name for other in GROUPS for name in _option_names(other)}
    for name in others - set(inspect.signature(kind).parameters):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
            _make(kind, **{name: 1})


def test_groups_may_be_named_by_their_first_option() -> None:
    streaming = _make(QuantizedDataStreaming, codec="lossless", refinement="fp32")
    assert streaming.request.codec == CodecOptions("lossless")
    assert streaming.request.refinement == Refinement("fp32")
    gradient = _make(GradientCompression, compression="fp16")
    assert gradient.request.compression == Compression("fp16")


def test_a_subclass_shows_its_own_arguments() -> None:
    class Slow(QuantizedDataReplay):
        def __init__(self, wait: float, **options: Any) -> None:
            super().__init__(nn.Linear(3, 2), _SGD, device="cpu", **options)
            self.wait = wait

    assert list(inspect.signature(Slow).parameters) == ["wait", "options"]
    assert Slow(0.5, server_steps=3).training.server_steps == 3
    with pytest.raises(TypeError, match="did you mean 'server_steps'"):
        Slow(0.5, server_step=3)
