"""What would fail or learn nothing is refused before anything is paid, in words."""

import copy
import logging
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import lr_scheduler

from codec import OptionError, SampleSpec
from strategies import DivergedError, RehearsalError, SampleBank, ServerModel, train_on_bank

IMAGES = SampleSpec((1, 8, 8), classes=4)
TABLE = SampleSpec((5,), "float32", -3, 4, classes=4)
NUMBERS = SampleSpec((5,), "float32", -3, 4)
VECTORS = SampleSpec((5,), "float32", -3, 4, target_size=2)
TOKENS = SampleSpec((6,), "int32", 0, 99, classes=4)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def convnet(outputs: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(144, outputs),
    )


def table(outputs: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, outputs))


def tokens() -> nn.Module:
    return nn.Sequential(nn.Embedding(100, 3), nn.Flatten(), nn.Linear(18, 4))


class Returning(nn.Module):
    def __init__(self, wrap: Callable[[Tensor], Any], outputs: int = 4) -> None:
        super().__init__()
        self.body, self.wrap = table(outputs), wrap

    def forward(self, inputs: Tensor) -> Any:
        return self.wrap(self.body(inputs))


class Strided(nn.Module):
    """A model that breaks with channels_last: it takes a view."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.layer = nn.Conv2d(1, 4, 3), nn.Linear(144, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.convolution(inputs)
        result: Tensor = self.layer(features.view(len(features), -1))
        return result


def rehearsed(
    model: Any,
    spec: SampleSpec,
    criterion: Any = None,
    optimizer: Any = sgd,
    scheduler: Any = None,
    *,
    batch_size: int = 64,
    per_sample: bool = False,
    gradients: bool = False,
    **options: Any,
) -> ServerModel:
    server = ServerModel(model, optimizer, criterion, scheduler, device="cpu", **options)
    server.rehearse(spec, "auto", batch_size, per_sample=per_sample, gradients=gradients)
    return server


@pytest.mark.parametrize(
    ("model", "spec", "criterion", "optimizer", "scheduler"),
    [
        (convnet, IMAGES, None, sgd, None),
        (lambda: convnet(9), IMAGES, None, sgd, None),  # fewer classes than outputs
        (convnet, IMAGES, nn.CrossEntropyLoss(weight=torch.ones(4)), sgd, None),
        (lambda: torch.compile(convnet(), backend="eager"), IMAGES, None, sgd, None),
        (lambda: convnet().bfloat16(), IMAGES, None, sgd, None),
        (lambda: Returning(lambda z: (z, z)), TABLE, None, sgd, None),
        (lambda: Returning(lambda z: {"logits": z}), TABLE, None, sgd, None),
        (lambda: Returning(lambda z: z.squeeze(1), 1), NUMBERS, None, sgd, None),
        (lambda: table(1), NUMBERS, None, sgd, None),
        (lambda: table(2), VECTORS, nn.SmoothL1Loss(), sgd, None),
        (lambda: table(2), VECTORS, nn.BCEWithLogitsLoss(), sgd, None),
        (lambda: table(2), VECTORS, nn.CrossEntropyLoss(), sgd, None),
        (table, TABLE, functional.cross_entropy, sgd, None),
        (tokens, TOKENS, None, sgd, None),
        (table, TABLE, None, torch.optim.LBFGS, None),
        (table, TABLE, None, torch.optim.AdamW, lr_scheduler.ReduceLROnPlateau),
        (table, TABLE, None, sgd, lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=9)),
        (
            lambda: table(1),
            SampleSpec((5,), "float32", classes=2),
            nn.BCEWithLogitsLoss(),
            sgd,
            None,
        ),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_what_works_passes_and_trains(
    model: Any, spec: SampleSpec, criterion: Any, optimizer: Any, scheduler: Any, batch_size: int
) -> None:
    server = rehearsed(model, spec, criterion, optimizer, scheduler, batch_size=batch_size)
    assert server.steps_taken == 0


def only(*positions: int) -> Callable[[Any], torch.optim.Optimizer]:
    def build(parameters: Any) -> torch.optim.Optimizer:
        held = list(parameters)
        return torch.optim.SGD([held[i] for i in positions], lr=0.1)

    return build


def broadcast(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets.mean()) ** 2


def raising(outputs: Tensor, targets: Tensor) -> Tensor:
    raise KeyError("no such\nthing")


def frozen() -> nn.Module:
    return table().requires_grad_(False)


@pytest.mark.parametrize(
    ("model", "spec", "criterion", "optimizer", "told"),
    [
        (table, IMAGES, None, sgd, r"shape \(1, 8, 8\) \(float32 in \[0, 1\].*the model fails"),
        (lambda: table(3), TABLE, None, sgd, r"3 outputs for 4 classes; give it at least 4"),
        (lambda: table(1), TABLE, None, sgd, "1 outputs for 4 classes"),
        (lambda: Returning(lambda z: {"y": z}), TABLE, None, sgd, "a dict with keys 'y'"),
        (lambda: Returning(lambda z: z.sum()), TABLE, None, sgd, "first axis must be that of the"),
        (lambda: Returning(lambda z: z.detach()), TABLE, None, sgd, "on no trainable parameter"),
        (lambda: Returning(lambda z: z * 0, 1), NUMBERS, None, sgd, "nothing would be learned"),
        (lambda: table(3), VECTORS, None, sgd, r"returns \(2, 3\), and the loss fails.*\(N, 2\)"),
        (lambda: table(1), NUMBERS, broadcast, sgd, "depends on other samples"),
        (table, TABLE, raising, sgd, "KeyError: 'no such"),
        (tokens, SampleSpec((6,), "int32", 0, 100, classes=4), None, sgd, r"int64 in \[0, 100\]"),
        (frozen, TABLE, None, sgd, "no trainable parameter; at least one must have requires_grad"),
    ],
)
def test_what_fails_is_told_in_words(
    model: Any, spec: SampleSpec, criterion: Any, optimizer: Any, told: str
) -> None:
    with pytest.raises(RehearsalError, match=told) as caught:
        rehearsed(model, spec, criterion, optimizer)
    assert isinstance(caught.value, ValueError) and "\n" not in str(caught.value)


class _Bounded(nn.Module):
    """Learns from numbers below 100 alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.layer(inputs * (inputs.abs() < 100))
        return result


def test_made_up_samples_that_saturate_the_model_are_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """They fill the whole range of the type, unlike real ones."""
    wide = SampleSpec((6,), "float32", 20_000, 30_000, classes=4)
    model = _Bounded()
    nn.init.zeros_(model.layer.bias).requires_grad_(False)
    with caplog.at_level(logging.WARNING, "flwr"):
        rehearsed(model, wide)
    assert "does the data need scaling?" in caplog.text


def test_an_optimizer_of_frozen_parameters_is_refused() -> None:
    def model() -> nn.Module:
        built = table()
        built[0].requires_grad_(False)  # type: ignore[index]
        return built

    rehearsed(model, TABLE)
    rehearsed(model, TABLE, optimizer=only(2, 3))
    with pytest.raises(RehearsalError, match="SGD holds no trainable parameter"):
        rehearsed(model, TABLE, optimizer=only(0, 1))


def test_one_number_for_the_batch_is_refused_where_samples_weigh_differently() -> None:
    rehearsed(table, TABLE, functional.cross_entropy)
    with pytest.raises(RehearsalError, match='one loss per sample \\(reduction="none"\\)'):
        rehearsed(table, TABLE, functional.cross_entropy, per_sample=True)


def test_optimizers_and_schedulers_that_gradients_do_not_suit_are_refused() -> None:
    rehearsed(table, TABLE, gradients=True)
    rehearsed(table, TABLE, scheduler=lr_scheduler.ReduceLROnPlateau, gradients=True)
    with pytest.raises(RehearsalError, match="LBFGS evaluates the loss several times"):
        rehearsed(table, TABLE, optimizer=torch.optim.LBFGS, gradients=True)
    server = ServerModel(table, sgd, None, lr_scheduler.ReduceLROnPlateau, device="cpu")
    with pytest.raises(OptionError, match="scheduler = ReduceLROnPlateau needs the loss"):
        server.check_gradients(loss_known=False)


def test_channels_last_is_given_up_for_a_model_that_takes_views(
    caplog: pytest.LogCaptureFixture,
) -> None:
    flwr = logging.getLogger("flwr")
    flwr.addHandler(caplog.handler)
    try:
        server = rehearsed(Strided, IMAGES, channels_last=True)
        assert not server.channels_last
        assert "channels_last is switched off" in caplog.text
    finally:
        flwr.removeHandler(caplog.handler)
    server.step((torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 2]), torch.ones(3)))
    assert rehearsed(convnet, IMAGES, channels_last=True).channels_last


OPTIMIZERS: list[Any] = [
    sgd,
    torch.optim.Adam,
    lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01), amsgrad=True, capturable=False),
    torch.optim.LBFGS,
    torch.optim.RMSprop,
    only(0, 1),
]
SCHEDULERS: list[Any] = [
    None,
    lr_scheduler.ReduceLROnPlateau,
    lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=20, cycle_momentum=False),
    lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.StepLR(o, 1)], [2]
    ),
]


def seed_all() -> None:
    torch.manual_seed(9)
    np.random.seed(9)  # noqa: NPY002  # what hosts use
    random.seed(9)


def numbers() -> tuple[float, float, float]:
    return float(torch.rand(())), np.random.rand(), random.random()  # noqa: NPY002


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("before", [0, 2])
def test_everything_is_put_back(optimizer: Any, scheduler: Any, before: int) -> None:
    def batches(count: int) -> list[Any]:
        stream = torch.Generator().manual_seed(3)
        return [
            (torch.rand(5, 1, 8, 8, generator=stream), torch.arange(5) % 4, torch.ones(5))
            for _ in range(count)
        ]

    def server() -> ServerModel:
        built = ServerModel(convnet, optimizer, None, scheduler, device="cpu")
        torch.manual_seed(1)
        for batch in batches(before):
            built.step(batch)
        return built

    plain, other = server(), server()
    state = copy.deepcopy(other.optimizer.state_dict())
    names = set(vars(other.optimizer))
    seed_all()
    expected = numbers()
    seed_all()
    other.model.eval()
    other.rehearse(IMAGES, "auto", 3, per_sample=True)
    assert not any(module.training for module in other.model.modules())
    assert numbers() == expected
    assert str(other.optimizer.state_dict()) == str(state)
    assert set(vars(other.optimizer)) == names and other.steps_taken == before
    for a, b in zip(
        plain.model.state_dict().values(), other.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)
    if scheduler is not None:
        assert plain.scheduler is not None and other.scheduler is not None
        assert plain.scheduler.get_last_lr() == other.scheduler.get_last_lr()
    # What follows is what would have come without the rehearsal.
    for one in (plain, other):
        torch.manual_seed(2)
        for batch in batches(2):
            one.step(batch)
    for a, b in zip(
        plain.model.state_dict().values(), other.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)


def test_a_failed_rehearsal_is_put_back_too() -> None:
    server = ServerModel(convnet, sgd, lambda o, t: o[:, :1] * t[:, None], device="cpu")
    before = copy.deepcopy(server.model.state_dict())
    with pytest.raises(RehearsalError):
        server.rehearse(SampleSpec((1, 8, 8), target_size=3), "auto", 8, per_sample=True)
    for name, value in server.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in server.model.parameters())


def test_a_loss_that_is_no_number_is_told_with_its_step() -> None:
    server = ServerModel(table, lambda p: torch.optim.SGD(p, lr=1e6), device="cpu")
    bank = SampleBank()
    rng = np.random.default_rng(0)
    samples = (1e18 * rng.normal(size=(40, 5))).astype(np.float32)
    bank.add_arrays(samples, rng.normal(size=(40, 4)).astype(np.float32))
    with pytest.raises(
        DivergedError, match=r"at optimizer step \d+: .*Lower the learning rate \(now 1e\+06\)"
    ):
        train_on_bank(server, bank, steps=300, batch_size=8, seed=0, server_round=1)
    assert server.steps_taken < 300
    with pytest.raises(DivergedError, match="loss is nan at optimizer step 1"):
        ServerModel(table, sgd, device="cpu").apply_gradient([], float("nan"))


def test_losses_of_several_steps_name_the_first_that_is_none() -> None:
    server = ServerModel(table, sgd, device="cpu")
    server.check_finite(torch.tensor([1.0, 2.0]), 5)
    with pytest.raises(DivergedError, match="loss is inf at optimizer step 6"):
        server.check_finite(torch.tensor([1.0, torch.inf, torch.nan]), 5)


@pytest.mark.parametrize(
    ("device", "told"),
    [("gpu", "device = 'gpu' must be 'auto', 'cpu', 'cuda'"), ("cuda:99", "torch sees")],
)
def test_devices_that_do_not_exist_are_named(device: str, told: str) -> None:
    with pytest.raises(OptionError, match=told):
        ServerModel(table, sgd, device=device)


def test_what_is_no_model_is_named() -> None:
    with pytest.raises(OptionError, match=r"model = int must be an nn.Module"):
        ServerModel(lambda: 3, sgd)  # type: ignore[arg-type, return-value]
    with pytest.raises(OptionError, match="model = LazyLinear has lazy layers"):
        ServerModel(nn.LazyLinear(2), sgd)
