"""Both ends run a model in the same way, whatever it returns and is made of."""

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clients.arrays import load_model
from clients.importance import model_outputs
from codec import CodecError, SampleSpec, batch_gradient
from codec.learning.forward import ModelOutputError, forward, main_output, training_forward
from codec.learning.state import model_state
from strategies import ServerModel

LOGITS = torch.rand(4, 2)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


class Inception(NamedTuple):
    logits: Tensor
    aux_logits: Tensor | None


@pytest.mark.parametrize(
    "returned",
    [
        LOGITS,
        (LOGITS, torch.zeros(4, 2)),
        [LOGITS],
        (None, LOGITS),
        Inception(LOGITS, None),
        SimpleNamespace(logits=LOGITS, loss=None),
        {"logits": LOGITS},
        {"out": LOGITS, "aux": torch.zeros(4, 2)},
    ],
)
def test_the_main_output_is_found(returned: Any) -> None:
    assert main_output(returned) is LOGITS


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (None, "returns a NoneType"),
        ({"prediction": LOGITS}, "returns a dict with keys 'prediction'"),
        ((), "returns a tuple of nothing"),
        (((LOGITS,),), "returns a tuple of tuple"),
        ({"logits": [1]}, "returns a dict with keys 'logits'"),
    ],
)
def test_other_outputs_are_refused_in_words(returned: Any, told: str) -> None:
    with pytest.raises(ModelOutputError, match=told):
        main_output(returned)


class Squeezing(nn.Module):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(3, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.layer(inputs).squeeze()
        return result


@pytest.mark.parametrize(("outputs", "shape"), [(1, ()), (5, (5,))])
def test_models_that_squeeze_keep_the_axis_of_the_batch(
    outputs: int, shape: tuple[int, ...]
) -> None:
    for count in (1, 2):
        assert forward(Squeezing(outputs), torch.rand(count, 3)).shape == (count, *shape)


def test_outputs_without_the_axis_of_the_batch_are_refused() -> None:
    class Flat(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs.flatten()

    with pytest.raises(ModelOutputError, match=r"shape \(12,\) for 4 samples of shape \(3,\)"):
        forward(Flat(), torch.rand(4, 3))


def test_a_batch_of_one_trains_all_but_norms_of_single_values() -> None:
    torch.manual_seed(0)
    spatial, single, dropout = nn.BatchNorm2d(2), nn.BatchNorm1d(8), nn.Dropout(0.5)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), single, dropout)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), spatial, head)
    spatial.eval()
    training_forward(model, torch.rand(1, 1, 6, 6))
    assert all(module.training for module in model.modules())
    assert spatial.running_mean is not None and spatial.running_mean.any()
    assert single.running_mean is not None and not single.running_mean.any()
    assert not any(module._forward_pre_hooks for module in model.modules())
    zeros = [bool((training_forward(model, torch.rand(1, 1, 6, 6)) == 0).any()) for _ in range(9)]
    assert any(zeros)
    training_forward(model, torch.rand(2, 1, 6, 6))
    assert single.running_mean.any()


def test_both_ends_take_the_same_gradient_of_one_sample() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))
    spec = SampleSpec((5,), "float32", 0, 1, classes=3)
    sample, target = np.random.default_rng(0).random((1, 5), dtype=np.float32), np.array([1])
    parts = batch_gradient(model, None, sample, target, np.ones(1, "f4"), spec=spec, batch_size=1)
    before = [p.detach().clone() for p in model.parameters()]
    server = ServerModel(model, sgd, device="cpu")
    server.step((torch.from_numpy(sample), torch.tensor([1]), torch.ones(1)))
    for old, new, part in zip(before, model.parameters(), parts, strict=True):
        torch.testing.assert_close(old - new, 0.1 * part)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))


def compiled() -> Any:
    return torch.compile(network(), backend="eager")


def test_compiled_and_plain_models_share_their_state() -> None:
    for one, other in ((network, compiled), (compiled, network), (compiled, compiled)):
        server = ServerModel(one(), sgd, device="cpu")
        server.step((torch.rand(4, 5), torch.tensor([0, 1, 2, 0]), torch.ones(4)))
        arrays = server.state_arrays()
        assert not any("_orig_mod" in name for name in arrays)
        client = load_model(other, arrays)
        for name, value in model_state(client).items():
            assert torch.equal(value, model_state(server.model)[name]), name
        # Whoever calls the compiled model's own state_dict has its prefix.
        back = ServerModel(one(), sgd, device="cpu")
        back.load_arrays(arrays)
        assert torch.equal(model_state(back.model)["0.weight"], model_state(client)["0.weight"])


def test_compiled_models_run_batches_of_one_and_are_scored() -> None:
    server = ServerModel(compiled(), sgd, device="cpu")
    for count in (4, 1, 4, 1):
        server.step((torch.rand(count, 5), torch.zeros(count, dtype=torch.long), torch.ones(count)))
    spec = SampleSpec((5,), "float32", 0, 1, classes=3)
    samples = np.random.default_rng(0).random((6, 5), dtype=np.float32)
    found = model_outputs(compiled(), samples, spec)
    expected = model_outputs(network(), samples, spec)
    np.testing.assert_allclose(found.logits, expected.logits)
    np.testing.assert_allclose(found.features, expected.features)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_of_other_precision_train_and_travel(dtype: torch.dtype) -> None:
    server = ServerModel(network().to(dtype), sgd, device="cpu")
    loss = server.step((torch.rand(4, 5), torch.tensor([0, 1, 2, 0]), torch.ones(4)))
    assert loss.dtype == torch.float32
    server.apply_gradient([torch.ones(p.shape) for p in server.trainable()])
    client = load_model(lambda: network().to(dtype), server.state_arrays())
    assert all(
        torch.equal(a, b)
        for a, b in zip(client.parameters(), server.model.parameters(), strict=True)
    )
    loss_there, accuracy = server.evaluate(torch.rand(4, 5), torch.tensor([0, 1, 2, 0]))
    assert np.isfinite([loss_there, accuracy]).all()


def test_a_state_that_does_not_fit_is_named_on_one_line() -> None:
    arrays = ServerModel(network(), sgd, device="cpu").state_arrays()

    def other() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 4), nn.Identity(), nn.Tanh(), nn.Linear(4, 2))

    with pytest.raises(CodecError) as caught:
        load_model(other, arrays)
    told = str(caught.value)
    assert "unknown: 1.bias, 1.num_batches_tracked" in told and "\n" not in told
    assert "3.weight (3, 4), here (2, 4)" in told


def test_only_grad_norm_needs_a_last_linear_layer() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    spec = SampleSpec((1, 6, 6), classes=2)
    samples = np.zeros((3, 1, 6, 6), np.uint8)
    found = model_outputs(model, samples, spec, features=False)
    assert found.logits.shape == (3, 2) and found.features.shape == (3, 0)
    with pytest.raises(CodecError, match="Importance loss needs none"):
        model_outputs(model, samples, spec)
