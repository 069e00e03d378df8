"""Training on a growing bank of quantized samples, several optimizer steps per round."""

import math
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from logging import ERROR, INFO, WARNING
from pathlib import Path
from typing import Any

import torch
from flwr.app import Message
from flwr.common import log

from codec import (
    Augmentation,
    Criterion,
    DecodeLimits,
    OptionError,
    SampleSpec,
)
from codec.messages import (
    REPLAY,
    SCOUT,
    AveragingOptions,
    BankTraining,
    BudgetOptions,
    CalibrationRequest,
    ClientOptions,
    DescribeRequest,
    Description,
    MixedOptions,
    Participation,
    ReplayOptions,
    ReplayRequest,
    Terms,
)
from codec.options import pick, split_options, takes_options, values_of
from codec.random import Stream, server_generator, torch_seed
from strategies.agreement import Agreement
from strategies.calibration import (
    ReceivedCalibration,
    calibration_bytes,
    pooled,
    read_calibration,
)
from strategies.enforcement import NodeTotals, check_fit
from strategies.errors import BankError, CheckpointError
from strategies.evaluation import EvaluationOptions
from strategies.expectation import Expectation
from strategies.participation import train_messages
from strategies.received import BadReply, Received
from strategies.received_samples import ReceivedSamples
from strategies.round_book import RoundBook, RoundResult
from strategies.sample_bank import DEFAULT_MEMORY_LIMIT, Added, Origin, SampleBank
from strategies.sample_strategy import SampleStrategy
from strategies.scout import ScoutTrainer
from strategies.senders import RecoveredSamples, Sender, Senders, recovered_samples
from strategies.server_model import ModelLike, OptimizerLike, SchedulerLike, ServerModel
from strategies.uplink_dial import dial_of

_LOG_SECONDS = 10.0
_UNSTORED = 3  # rounds in a row in which the bank takes nothing
_EVALUATION_BYTES = 700  # of a node's reply to an evaluation, about
_NOT_CALIBRATED = (
    "none of %d nodes could calibrate the model (they need torch, and model=<factory>): batch "
    "normalization keeps the statistics of the samples in the bank"
)
_CHECK_STEPS = 100  # optimizer steps between checks that losses are finite
# Of the last minibatches, to calibrate batch normalization with: how much is kept of them.
_CALIBRATION_SAMPLES, _CALIBRATION_VALUES = 2048, 1 << 24


@takes_options(
    ReplayOptions,
    BankTraining,
    BudgetOptions,
    Participation,
    EvaluationOptions,
    MixedOptions,
    AveragingOptions,
)
class QuantizedDataReplay(SampleStrategy):
    """The server keeps what it received and trains on all of it in every round.

    In a round each client sends its next samples, within its budget; the server adds them to its
    `SampleBank` and takes ``server_steps`` optimizer steps on minibatches of the bank. A
    sample is thus paid for once and used in every later epoch. A client that has sent everything
    is not asked again; when all have, rounds cost no bytes.

    A reply may get lost or be rejected. Each request therefore brings the receipt of the last
    reply from that node which was accepted (``"acknowledged"``), and the client counts samples as
    sent only then. A reply that comes after its round is banked in the round in which it comes. A
    device whose data grow is asked again when it has sent everything: in the next round, and then
    after two, four and eight while it has nothing new.

    With a `bank` that has a file all that arrives outlives the run. Nodes that this process does
    not know describe themselves first, so that each is told what has arrived of it: no sample
    is asked for twice, in whatever run.

    In a `mixed` federation the devices that share no samples answer with a model of their own
    training, from the host's own code for FedAvg or `clients.baselines.train_local`. After the
    server's steps the new model is the mean of theirs, weighted by ``num-examples``, and the
    server's, weighted by the samples in the bank; buffers of batch normalization as FedAvg does.

    Parameters
    ----------
    model, optimizer, criterion, scheduler, device, amp, channels_last
        See `ServerModel`.
    augment : callable, optional
        ``(samples, torch.Generator) -> samples`` on each minibatch, as the model sees it.
    memory_limit : int
        Bytes of decoded samples that the bank has in memory, see `SampleBank`.
    bank : SampleBank, str or Path, optional
        What is received goes there: a bank, or the file of one, which may hold samples already. By
        default a new one in memory. As an attribute always a `SampleBank`.
    samples : SampleSpec, optional
        What the clients' samples are. By default some of them are asked before the first round,
        see `Agreement`; either way the model takes a step on made-up samples first.
    sample_shape : tuple[int, ...], optional
        Shape that every sample must have; by default that of `samples`, or what is described.
    class_names : sequence of str
        Classes in the order of the model's outputs: clients map their own labels by name. By
        default those of the clients that are asked, if they have any.
    limits : DecodeLimits, optional
        What a payload may make the server allocate.
    on_round : callable, optional
        Called with the `RoundResult` at the end of each round's training.

    Attributes
    ----------
    dial : UplinkDial or None
        With `uplink_budget_total`: the budget, and the plan that was made of it.

    Raises
    ------
    ValueError
        If an option is out of its range, or options contradict each other; names option, value and
        what is legal.
    """

    request: ReplayRequest
    takes_late = True

    def __init__(
        self,
        model: ModelLike,
        optimizer: OptimizerLike,
        criterion: Criterion | None = None,
        scheduler: SchedulerLike | None = None,
        *,
        augment: Augmentation | None = None,
        memory_limit: int = DEFAULT_MEMORY_LIMIT,
        bank: SampleBank | str | Path | None = None,
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
        asked, self.training, budget, participation, evaluation, mixed, averaging = split_options(
            options,
            ReplayOptions,
            BankTraining,
            BudgetOptions,
            Participation,
            EvaluationOptions,
            MixedOptions,
            AveragingOptions,
        )
        request = pick(
            ReplayRequest, asked, server_round=0, **values_of(participation, ClientOptions)
        )
        dial = dial_of(budget.uplink_budget_total, asked, mixed)
        server_model = ServerModel(
            model,
            optimizer,
            criterion,
            scheduler,
            device=device,
            amp=amp,
            channels_last=channels_last,
            ema_decay=self.training.ema_decay,
        )
        limits = limits or DecodeLimits()
        if not isinstance(bank, SampleBank):
            bank = SampleBank(memory_limit, limits, scale=request.scale, path=bank)
        elif bank.scale != request.scale:
            raise OptionError("bank", f"has scale {bank.scale!r}; the option is {request.scale!r}")
        self.bank = bank
        request = replace(request, bank=bank.id)
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
            expected=Expectation.of(
                request if dial is None else replace(request, uplink_budget=dial.budget),
                shape=sample_shape,
                limits=limits,
            ),
            participation=participation,
            mixed=mixed,
            averaging=averaging,
            options=[asked, self.training, budget],
        )
        self.dial = dial
        self._augment = augment
        self._senders = Senders()
        self._totals = NodeTotals()
        self._passed_over = False  # whether nodes were left out that the budget is not worth
        self._unstored = 0  # rounds in a row in which the bank took nothing
        self._scout = None
        if request.scorer == SCOUT:
            self._scout = ScoutTrainer(self.training, request.seed, server_model.device, augment)

    def request_to(self, node_id: int, request: ReplayRequest) -> ReplayRequest:
        """Return the request with what has arrived of a node, and what it may send."""
        request = replace(request, acknowledged=self._senders.acknowledged(node_id))
        grant = None if self.dial is None else self.dial.granted(node_id)
        if self.dial is not None and grant is not None:
            request = replace(
                request,
                codec=self.dial.codec,
                uplink_budget=grant.payload_bytes,
                finest=grant.finest,
            )
        if self._scout is not None:
            request = self._scout.request_to(node_id, request, self._agreement.spec)
        return request

    def finished(self) -> Collection[int]:
        """Return nodes that have sent everything, and are not to be asked for more in this round.

        Nor are those whose reply to this round is there already, see `recovered`, or any where the
        budget is used up.
        """
        done = set(self._senders.finished(self.book.current_round))
        strangers = self._senders.strangers() & done
        if strangers and self._post is not None:  # those that have another id now are counted twice
            done -= strangers - set(self._post.get_node_ids())
        if self.dial is not None and self._post is not None:
            connected, busy = set(self._post.get_node_ids()), self.busy()
            spent = self._spent(self.book.current_round, len(connected))
            if self.dial.is_used_up(spent, busy):
                done |= connected - busy
        return done

    # The budget of a run

    def question(self, server_round: int) -> DescribeRequest:
        """Return what asks nodes to describe their samples, and what these take if need be."""
        question = super().question(server_round)
        if self.dial is None or self.dial.plan is not None:
            return question
        terms, codec = self._agreement.terms or Terms(), self.request.codec.to_bytes()
        return replace(question, terms=terms, curve_of=codec)

    def worth_asking(self, server_round: int, nodes: list[int]) -> list[int]:
        """Return the nodes that the rest of the budget is worth asking."""
        if self.dial is None:
            return nodes
        stream = server_generator(self.request.seed, server_round, Stream.SERVER_NODES)
        shuffled = [nodes[k] for k in stream.permutation(len(nodes))]
        spent, heard = self._spent(server_round, len(nodes)), self.ledger.node_bytes()
        rounds_left = self._rounds_left(server_round)
        chosen = set(self.dial.worth_asking(shuffled, spent, heard, self.busy(), rounds_left))
        self._passed_over = len(chosen) < len(nodes)
        return [node_id for node_id in nodes if node_id in chosen]

    def granted(self, server_round: int, nodes: list[int], connected: set[int]) -> list[int]:
        """Return the nodes that may send something in this round."""
        if self.dial is None:
            return nodes
        others = connected - set(nodes) - self.busy() - set(self.finished())
        return self.dial.grant(
            nodes,
            self._spent(server_round, len(connected)),
            self.busy(),
            others,
            self._rounds_left(server_round),
            all_now=self._passed_over,
        )

    def _spent(self, server_round: int, nodes: int) -> int:
        """Return the bytes of all replies so far, and of those that are to come in any case."""
        waiting = sum(stored.content_bytes for stored in self._senders.waiting)
        sections, evaluation = self.ledger.sections(), 0.0  # of a round
        if "evaluation" in sections:
            evaluation = sections["evaluation"] / max(1, server_round - 1)
        elif self.evaluation.fraction_evaluate:
            share = math.ceil(self.evaluation.fraction_evaluate * nodes)
            evaluation = _EVALUATION_BYTES * max(self.evaluation.min_evaluate_nodes, share)
        to_come = self._rounds_left(server_round) * evaluation
        if self.num_rounds:  # the calibration that ends the run
            told = calibration_bytes(self.server_model.statistics)
            to_come += min(self.training.calibration_nodes, nodes) * told
        return self.ledger.uplink_bytes + waiting + math.ceil(to_come)

    def _rounds_left(self, server_round: int) -> int:
        """Return the rounds to come, this one among them; 1 where that is not known."""
        return max(1, self.num_rounds - server_round + 1)

    def expectation(self, node_id: int) -> Expectation:
        """Return what a node's reply may hold: what it was granted, as coarse or finer."""
        grant = None if self.dial is None else self.dial.granted(node_id)
        if self.dial is None or self.dial.plan is None:
            return self._expected
        most = self.dial.budget if grant is None else grant.payload_bytes
        return replace(self._expected, max_bytes=most, settings=self.dial.settings)

    def must_meet(self, node_id: int) -> bool:
        """Whether it is not known what has arrived of a node, or what it has, and should be."""
        if self.dial is not None and not self.dial.knows(node_id):
            return True
        held = self.bank.replies or self._senders.waiting
        return bool(self.bank.id and held) and not self._senders.knows(node_id)

    def met(self, node_id: int, description: Description) -> None:
        """Find out what has arrived of a node."""
        self._totals.describe(node_id, description.num_examples)
        pending = description.pending
        has_arrived = bool(pending) and self.bank.has_receipt(pending)
        former = self._senders.meet(
            node_id,
            description.client,
            pending if has_arrived else b"",
            by_client=self.request.client_key == "partition",
        )
        if former is not None:
            self.book.rename(former, node_id)
        if self.dial is not None:
            if former is not None:
                self.dial.rename(former, node_id)
            self.dial.describe(node_id, description)

    def num_recovered(self) -> int:
        """Return how many replies to this round are banked already."""
        return len(self._senders.waiting)

    def recovered(self, server_round: int) -> Sequence[Received]:
        """Return the replies to this round that the process before this one has banked."""
        found = [recovered_samples(stored) for stored in self._senders.take_waiting()]
        for one in found:
            self.book.recover(
                server_round, one.node_id, one.num_sent, one.content_bytes, one.envelope_bytes
            )
        return found

    def close(self) -> None:
        """Let go of the bank's file."""
        self.bank.close()

    def check_keepable(self) -> None:
        """Raise `CheckpointError` if the samples would be gone."""
        if not self.bank.id:
            raise CheckpointError(
                "a bank in memory ends with its process, and a checkpoint without its samples is "
                "of no use: pass bank=FILE"
            )

    def own_state(self) -> dict[str, Any]:
        """Return what is agreed on, where the bank is, and what is known of the nodes."""
        return super().own_state() | {
            "bank": self.bank.id,
            "replies": self.bank.replies,
            "position": self.bank.position(),
            "senders": self._senders.state(),
            "scout": {} if self._scout is None else self._scout.position(),
            "dial": {} if self.dial is None else self.dial.state(),
        }

    def restore_own(self, state: Mapping[str, Any]) -> None:
        """Take over what `own_state` returned; what has arrived since waits for its round."""
        super().restore_own(state)
        if state["bank"] != self.bank.id:
            raise CheckpointError(
                f"the checkpoint is of bank {state['bank'].hex()}, this is bank "
                f"{self.bank.id.hex() or 'in memory'}: pass the bank=FILE of that run"
            )
        waiting = self.bank.hold_back(state["replies"])
        self.bank.restore(state["position"])
        self._senders.restore(state["senders"], waiting)
        self._totals = NodeTotals()  # what waits will be counted again
        if self._scout is not None:
            self._scout.restore(state["scout"])
        if self.dial is not None:
            self.dial.restore(state["dial"])

    def needs_nodes(self) -> bool:
        """Whether there is nothing yet to train on."""
        return not len(self.bank)

    def take_leftovers(self, server_round: int, replies: Sequence[Message]) -> None:
        """Bank what came after the last round."""
        accepted = self.collect(server_round, replies, self.read) if replies else []
        self.keep(server_round, accepted)
        if self.dial is not None:
            log(INFO, "%s", self.dial.outcome(self.ledger.uplink_bytes))

    def train(self, server_round: int, accepted: Sequence[Received]) -> tuple[float, int]:
        """Bank the samples and train on all that the bank holds."""
        self.keep(server_round, accepted)
        terms = self._agreement.terms
        if terms is not None and terms.class_names != self.bank.class_names:
            self.bank.tell_class_names(terms.class_names)
        loss = self.learn(server_round)
        if server_round == self.num_rounds:
            self._calibrate(server_round)
        return loss, len(self.bank)

    def _calibrate(self, server_round: int) -> None:
        """Let some nodes say what batch normalization sees of their original samples."""
        wanted, expected = self.training.calibration_nodes, self.server_model.statistics
        if not (wanted and expected) or self._post is None:
            return
        free = sorted(self._sharing & set(self._post.get_node_ids()) - self.busy())
        stream = server_generator(self.request.seed, server_round, Stream.SERVER_CALIBRATION)
        nodes = [free[k] for k in stream.permutation(len(free))[:wanted]]
        request = CalibrationRequest(
            server_round=server_round,
            terms=self._agreement.terms or Terms(),
            **values_of(self.request, ClientOptions),
        )
        arrays = self.server_model.state_arrays()
        messages = train_messages(nodes, lambda _: request, arrays=arrays)
        self.book.ask(server_round, messages)
        replies = self._post.send_and_receive(messages, timeout=self.timeout) if messages else ()
        answers = self.book.answers(
            server_round,
            replies,
            partial(read_calibration, expected=expected),
            what="buffers",
            unhurried=self._post.unhurried,
        )
        told = [answer for _, answer in answers if isinstance(answer, ReceivedCalibration)]
        if told:
            self.server_model.set_statistics(pooled(told))
            samples = sum(one.num_examples for one in told)
            log(INFO, "\tcalibrated by %d nodes, on %d original samples", len(told), samples)
        else:
            log(WARNING, _NOT_CALIBRATED, len(nodes))

    def keep(self, server_round: int, accepted: Sequence[Received]) -> None:
        """Bank the replies' samples; remember what of each node has arrived, and who is done.

        Raises
        ------
        BankError
            If for some rounds the bank could not take a single reply.
        """
        stored, refused = 0, None
        for received in accepted:
            if not isinstance(received, ReceivedSamples | RecoveredSamples):
                continue
            try:
                added = self._bank(server_round, received)
            except BankError as error:
                refused = error
                log(ERROR, "nothing of node %d can be kept: %s", received.node_id, error)
                self.book.reject(received.node_id, BadReply("bank", f"{error!s:.200}"))
            except BadReply as bad:
                self.book.reject(received.node_id, bad)
            except Exception as error:  # out of the bank: whatever it is, others go on
                self.book.reject(received.node_id, BadReply("fit", f"{error!s:.200}"))
            else:
                stored += 1
                self._take_note_of(received, added)
        if stored or refused is None:
            self._unstored = 0
        else:
            self._unstored += 1
            if self._unstored >= _UNSTORED:
                raise refused

    def _bank(self, server_round: int, received: ReceivedSamples | RecoveredSamples) -> Added:
        if isinstance(received, RecoveredSamples):
            return self.bank.admit(received.receipt)
        self._totals.check(received)
        check_fit(self.server_model, received.payloads, self.request.scale)
        reply = received.reply
        content_bytes, envelope_bytes = self.book.size_of(received.node_id)
        origin = Origin(
            receipt=received.receipt,
            node_id=received.node_id,
            client=received.client,
            server_round=server_round,
            strategy=REPLAY,
            fingerprints=reply.fingerprints,
            variance_kept=reply.variance_kept,
            remaining=reply.remaining,
            content_bytes=content_bytes,
            envelope_bytes=envelope_bytes,
        )
        return self.bank.add_reply(received.payloads, origin)

    def _take_note_of(self, received: ReceivedSamples | RecoveredSamples, added: Added) -> None:
        duplicates = received.num_sent if added.known else added.duplicates
        if duplicates:
            self.book.drop_duplicates(received.node_id, duplicates)
        node_id = received.node_id
        if self.dial is not None:
            self._tell_dial(received)
        if isinstance(received, RecoveredSamples):  # what it sends next is beside these
            self._totals.describe(node_id, received.num_sent + received.remaining)
        self._totals.keep(node_id, added.samples)
        if isinstance(received, RecoveredSamples):
            growing = self._senders.may_grow(node_id)
        else:
            growing = received.growing
            if self._scout is not None:
                self._scout.arrived(received)
        sender = Sender(received.client, received.receipt, received.remaining, growing)
        self._senders.note(node_id, sender, self.book.current_round, is_new=added.samples > 0)

    def _tell_dial(self, received: ReceivedSamples | RecoveredSamples) -> None:
        assert self.dial is not None
        data = (received.reply.samples, *received.reply.more)
        content_bytes = 0  # of a recovered reply only the size is known
        if isinstance(received, ReceivedSamples):
            content_bytes, _ = self.book.size_of(received.node_id)
        growing = isinstance(received, ReceivedSamples) and received.growing
        left = max(received.remaining, int(growing))
        size = sum(map(len, data))
        self.dial.note(received.node_id, content_bytes, size, received.num_sent, left)

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
            # A round that goes on with all its replies banked asks nobody: no request did this.
            self._scout.settle(self._agreement.terms or Terms(), self._agreement.spec)
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

    If weights are averaged, batch normalization is calibrated in the end, see
    `ServerModel.calibrate`, on samples of the last minibatches.

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
        See `QuantizedDataReplay`.

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
    recent: deque[torch.Tensor] = deque()
    calibrates = server_model.averages_normalization  # looks at every module: once is enough
    for step, batch in enumerate(bank.minibatches(batch_size, steps, order, device), start=1):
        samples, targets, weights = batch
        if calibrates:
            _remember(recent, samples)
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
    server_model.calibrate(recent)
    return float(losses.mean()) if steps else float("nan")


def _remember(recent: deque[torch.Tensor], samples: torch.Tensor) -> None:
    """Add a minibatch to the last ones, and forget those that are no longer needed."""
    recent.append(samples)
    while len(recent) > 1 and (
        sum(map(len, recent)) > _CALIBRATION_SAMPLES
        or sum(batch.numel() for batch in recent) > _CALIBRATION_VALUES
    ):
        recent.popleft()
