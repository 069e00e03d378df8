"""Training on a growing bank of quantized samples, several optimizer steps per round."""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from logging import INFO, WARNING
from typing import Any

import torch
from flwr.common import log

from codec import (
    Augmentation,
    Criterion,
    DecodedSamples,
    DecodeLimits,
    SamplePayload,
    SampleSpec,
)
from codec.learning.inputs import sees_floats
from codec.messages import (
    SCOUT,
    BankTraining,
    ClientOptions,
    MixedOptions,
    Participation,
    ReplayOptions,
    ReplayRequest,
)
from codec.options import pick, split_options, takes_options, values_of
from codec.random import Stream, server_generator, torch_seed
from strategies.agreement import Agreement
from strategies.evaluation import EvaluationOptions
from strategies.received import BadReply, Received
from strategies.received_samples import Expectation, ReceivedSamples
from strategies.round_book import RoundBook, RoundResult
from strategies.sample_bank import DEFAULT_MEMORY_LIMIT, SampleBank
from strategies.sample_strategy import SampleStrategy
from strategies.scout import ScoutTrainer
from strategies.server_model import ModelLike, OptimizerLike, SchedulerLike, ServerModel

_NOTHING = b""
_LOG_SECONDS = 10.0
_CHECK_STEPS = 100  # optimizer steps between checks that losses are finite


@takes_options(ReplayOptions, BankTraining, Participation, EvaluationOptions, MixedOptions)
class QuantizedDataReplay(SampleStrategy):
    """The server keeps what it received and trains on all of it in every round.

    In a round each client sends its next samples, within its budget; the server adds them to its
    :class:`SampleBank` and takes ``server_steps`` optimizer steps on minibatches of the bank. A
    sample is thus paid for once and used in every later epoch. A client that has sent everything
    is not asked again; when all have, rounds cost no bytes.

    A reply may get lost or be rejected. Each request therefore brings the receipt of the last
    reply from that node which was accepted (``"acknowledged"``), and the client counts samples as
    sent only then.

    In a `mixed` federation the devices that share no samples answer with a model of their own
    training, from the host's own code for FedAvg or `clients.baselines.train_local`. After the
    server's steps the new model is the mean of theirs, weighted by ``num-examples``, and the
    server's, weighted by the samples in the bank; buffers of batch normalization as FedAvg does.

    Parameters
    ----------
    model, optimizer, criterion, scheduler, device, amp, channels_last
        See :class:`ServerModel`.
    augment : callable, optional
        ``(samples, torch.Generator) -> samples`` on each minibatch, as the model sees it.
    memory_limit : int
        Bytes of decoded samples that the bank holds, see :class:`SampleBank`.
    samples : SampleSpec, optional
        What the clients' samples are. By default some of them are asked before the first round,
        see :class:`Agreement`; either way the model takes a step on made-up samples first.
    sample_shape : tuple[int, ...], optional
        Shape that every sample must have; by default that of `samples`, or what is described.
    class_names : sequence of str
        Classes in the order of the model's outputs: clients map their own labels by name. By
        default those of the clients that are asked, if they have any.
    limits : DecodeLimits, optional
        What a payload may make the server allocate.
    on_round : callable, optional
        Called with the :class:`RoundResult` at the end of each round's training.

    Attributes
    ----------
    bank : SampleBank
        What was received.

    Raises
    ------
    ValueError
        If an option is out of its range; names option, value and range.
    """

    request: ReplayRequest

    def __init__(
        self,
        model: ModelLike,
        optimizer: OptimizerLike,
        criterion: Criterion | None = None,
        scheduler: SchedulerLike | None = None,
        *,
        augment: Augmentation | None = None,
        memory_limit: int = DEFAULT_MEMORY_LIMIT,
        device: str = "auto",
        amp: str | bool = "auto",
        channels_last: str | bool = "auto",
        samples: SampleSpec | None = None,
        sample_shape: tuple[int, ...] | None = None,
        class_names: Sequence[str] = (),
        limits: DecodeLimits | None = None,
        on_round: Callable[[RoundResult], None] | None = None,
        **options: Any,
    ) -> None:
        asked, self.training, participation, evaluation, mixed = split_options(
            options, ReplayOptions, BankTraining, Participation, EvaluationOptions, MixedOptions
        )
        request = pick(
            ReplayRequest, asked, server_round=0, **values_of(participation, ClientOptions)
        )
        server_model = ServerModel(
            model,
            optimizer,
            criterion,
            scheduler,
            device=device,
            amp=amp,
            channels_last=channels_last,
        )
        limits = limits or DecodeLimits()
        super().__init__(
            server_model,
            RoundBook(on_round),
            request,
            evaluation,
            agreement=Agreement(
                server_model,
                request,
                spec=samples,
                shape=sample_shape,
                class_names=class_names,
                limits=limits,
                batch_size=self.training.server_batch_size,
                per_sample=request.weighs_samples,
            ),
            expected=Expectation(shape=sample_shape, limits=limits),
            participation=participation,
            mixed=mixed,
            options=[asked, self.training],
        )
        self.bank = SampleBank(memory_limit, limits, scale=request.scale)
        self._augment = augment
        self._scout = None
        if request.scorer == SCOUT:
            self._scout = ScoutTrainer(self.training, request.seed, server_model.device, augment)
        self._acknowledged: dict[int, bytes] = {}
        self._finished: set[int] = set()

    def request_to(self, node_id: int, request: ReplayRequest) -> ReplayRequest:
        """Return the request with what has arrived of a node."""
        request = replace(request, acknowledged=self._acknowledged.get(node_id, _NOTHING))
        if self._scout is not None:
            request = self._scout.request_to(node_id, request, self._agreement.spec)
        return request

    def finished(self) -> Collection[int]:
        """Return nodes that have sent everything."""
        return self._finished

    def train(self, server_round: int, accepted: Sequence[Received]) -> tuple[float, int]:
        """Bank the samples and train on all that the bank holds."""
        self.keep(server_round, [r for r in accepted if isinstance(r, ReceivedSamples)])
        return self.learn(server_round), len(self.bank)

    def keep(self, server_round: int, accepted: Sequence[ReceivedSamples]) -> None:
        """Bank the replies' samples; remember what of each node has arrived, and who is done."""
        for received in accepted:
            try:
                for payload, decoded in received.payloads:
                    self._check_tokens(payload, decoded)
                    self.bank.add_payload(payload, decoded)
            except (RuntimeError, IndexError, ValueError) as error:  # of the host's model, or bank
                self.book.reject(received.node_id, BadReply("fit", f"{error!s:.200}"))
                continue
            self._acknowledged[received.node_id] = received.receipt
            if self._scout is not None:
                self._scout.arrived(received)
            if received.remaining == 0:
                self._finished.add(received.node_id)

    def _check_tokens(self, payload: SamplePayload, decoded: DecodedSamples) -> None:
        """Let the model see the highest token of a payload; it raises what lies beyond its own."""
        if not sees_floats(payload.spec):
            row = int(decoded.samples.reshape(payload.count, -1).max(axis=1).argmax())
            sample = torch.from_numpy(decoded.samples[row : row + 1])
            with torch.no_grad():
                device = self.server_model.device
                self.server_model.outputs(sample.round().long().to(device), training=False)

    def learn(self, server_round: int) -> float:
        """Train on the bank; mean loss, NaN without a step."""
        if not len(self.bank):
            log(WARNING, "no sample has arrived yet: no training in round %d", server_round)
            return float("nan")
        loss = train_on_bank(
            self.server_model,
            self.bank,
            steps=self.training.server_steps,
            batch_size=self.training.server_batch_size,
            seed=self.request.seed,
            server_round=server_round,
            augment=self._augment,
        )
        if self._scout is not None:
            self._scout.train(server_round, self.bank)
        return loss


def train_on_bank(
    server_model: ServerModel,
    bank: SampleBank,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    server_round: int,
    augment: Augmentation | None = None,
) -> float:
    """Take optimizer steps on minibatches of a bank: a round's, or those of central training.

    Parameters
    ----------
    server_model : ServerModel
        What is trained.
    bank : SampleBank
        At least one sample.
    steps, batch_size : int
        Optimizer steps, and samples in each.
    seed, server_round : int
        Key of the minibatches and of the augmentation.
    augment : callable, optional
        See :class:`QuantizedDataReplay`.

    Returns
    -------
    float
        Mean loss of the steps; NaN without steps.

    Raises
    ------
    DivergedError
        If a loss is not finite; names the step.
    """
    device = server_model.device
    order = server_generator(seed, server_round, Stream.SERVER_MINIBATCHES)
    augmentation = torch.Generator(device)
    stream = server_generator(seed, server_round, Stream.SERVER_AUGMENTATION)
    augmentation.manual_seed(torch_seed(stream))
    losses = torch.zeros(steps, device=device)
    before, checked = server_model.steps_taken, 0
    started = logged_at = time.perf_counter()
    for step, batch in enumerate(bank.minibatches(batch_size, steps, order, device), start=1):
        samples, targets, weights = batch
        if augment is not None:
            samples = augment(samples, augmentation)
        losses[step - 1] = server_model.step((samples, targets, weights))
        # Not at every step, as this waits for the device.
        if step == steps or step - checked >= _CHECK_STEPS:
            server_model.check_finite(losses[checked:step], before + checked + 1)
            checked = step
        now = time.perf_counter()
        if now - logged_at >= _LOG_SECONDS:
            logged_at = now
            mean, speed = float(losses[:step].mean()), step / (now - started)
            log(INFO, "\ttraining: %d/%d steps, loss %.4f, %.1f steps/s", step, steps, mean, speed)
    return float(losses.mean()) if steps else float("nan")
