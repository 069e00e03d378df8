"""Training on a growing bank of quantized samples, several optimizer steps per round."""

import time
from collections.abc import Callable
from logging import INFO, WARNING

import torch
from flwr.common import log

from codec import Augmentation, CodecOptions, Criterion, DecodeLimits, generator
from strategies.accounted_strategy import RoundResult
from strategies.options import MODEL_IMPORTANCES, check_filter, check_range
from strategies.quantized_data import QuantizedDataStrategy
from strategies.reply import Expectation, Reply
from strategies.sample_bank import SampleBank
from strategies.server_model import (
    ModelLike,
    OptimizerLike,
    SchedulerLike,
    ServerModel,
)
from strategies.server_strategy import SERVER_STREAM

_NEVER = -1
_MINIBATCHES, _AUGMENTATION = 1, 2
_LOG_SECONDS = 10.0


class QuantizedDataReplay(QuantizedDataStrategy):
    """The server keeps what it received and trains on all of it in every round.

    In a round each client sends its next samples, within its budget; the server adds them to its
    :class:`SampleBank` and takes ``server_steps`` optimizer steps on minibatches of the bank. A
    sample is thus paid for once and used in every later epoch. A client that has sent everything
    is asked no more; when all have, rounds cost no bytes.

    A reply may get lost or be rejected. Each instruction therefore names the round of the last
    reply from that node which was accepted (``"acknowledged"``), and the client counts samples as
    sent only then.

    Parameters
    ----------
    model, optimizer, criterion, scheduler, device, amp, channels_last
        See :class:`ServerModel`.
    codec : CodecOptions
        Quantizer and rate of the samples.
    samples_per_round : int
        Most samples that a client sends per round; 0: all.
    uplink_budget : int
        Bytes that a client may send per round; 0: unlimited.
    server_steps : int
        Optimizer steps per round.
    server_batch_size : int
        Samples per optimizer step.
    augment : callable, optional
        ``(samples, torch.Generator) -> samples`` on each minibatch, scaled to [0, 1].
    importance, selection, uniform_share
        See :class:`QuantizedDataSGD`.
    keep_rate : float
        Share of its samples that a client ever sends, in (0, 1].
    pool_factor : float
        With an importance that needs the model: samples that a client scores per sample
        sent, >= 1.
    memory_limit : int
        Bytes of decoded samples that the bank holds, see :class:`SampleBank`.
    fraction_train, min_available_nodes, seed, on_round
        See :class:`ServerStrategy`.
    sample_shape : tuple[int, ...], optional
        Shape of one sample; by default that of the first valid payload.
    limits : DecodeLimits, optional
        What a payload may make the server allocate.

    Attributes
    ----------
    bank : SampleBank
        What was received.

    Raises
    ------
    ValueError
        If an option is out of its range; names option, value and range.
    """

    def __init__(
        self,
        model: ModelLike,
        optimizer: OptimizerLike,
        criterion: Criterion | None = None,
        scheduler: SchedulerLike | None = None,
        *,
        codec: CodecOptions | None = None,
        samples_per_round: int = 0,
        uplink_budget: int = 0,
        server_steps: int = 100,
        server_batch_size: int = 128,
        augment: Augmentation | None = None,
        importance: str = "all",
        selection: str = "budget",
        keep_rate: float = 1.0,
        uniform_share: float = 0.2,
        pool_factor: float = 4.0,
        memory_limit: int = 4 << 30,
        fraction_train: float = 1.0,
        min_available_nodes: int = 1,
        seed: int = 0,
        device: str = "auto",
        amp: str | bool = "auto",
        channels_last: str | bool = "auto",
        sample_shape: tuple[int, ...] | None = None,
        limits: DecodeLimits | None = None,
        on_round: Callable[[RoundResult], None] | None = None,
    ) -> None:
        check_range("samples_per_round", samples_per_round, 0)
        check_range("server_steps", server_steps, 0)
        check_range("server_batch_size", server_batch_size, 1)
        check_range("pool_factor", pool_factor, 1.0)
        check_filter(importance, selection, keep_rate, uniform_share, uplink_budget)
        limits = limits or DecodeLimits()
        self.bank = SampleBank(memory_limit, limits)
        self.server_steps = server_steps
        self.server_batch_size = server_batch_size
        self._augment = augment
        self._acknowledged: dict[int, int] = {}
        self._finished: set[int] = set()
        super().__init__(
            ServerModel(
                model,
                optimizer,
                criterion,
                scheduler,
                device=device,
                amp=amp,
                channels_last=channels_last,
            ),
            {
                "mode": "replay",
                "codec": (codec or CodecOptions()).to_bytes(),
                "batch-size": samples_per_round,
                "importance": importance,
                "selection": selection,
                "keep-rate": keep_rate,
                "uniform-share": uniform_share,
                "pool-factor": pool_factor,
                "uplink-budget": uplink_budget,
                "refinement": "none",
            },
            sends_model=importance in MODEL_IMPORTANCES,
            expected=Expectation(shape=sample_shape, limits=limits),
            fraction_train=fraction_train,
            min_available_nodes=min_available_nodes,
            seed=seed,
            on_round=on_round,
        )

    def finished_nodes(self) -> set[int]:
        """Nodes whose every sample has arrived."""
        return self._finished

    def node_instruction(self, node_id: int) -> dict[str, int]:
        """Round of the node's last accepted reply, -1 for none."""
        return {"acknowledged": self._acknowledged.get(node_id, _NEVER)}

    def learn(self, server_round: int, replies: list[Reply]) -> float:
        """Add the replies' samples to the bank and train on it; mean loss, NaN without a step."""
        for reply in replies:
            if reply.payload is not None:
                self.bank.add_payload(reply.payload, reply.decoded)
            self._acknowledged[reply.node_id] = server_round
            if reply.remaining == 0:
                self._finished.add(reply.node_id)
        if not len(self.bank):
            log(WARNING, "no sample has arrived yet: no training in round %d", server_round)
            return float("nan")
        return train_on_bank(
            self.server_model,
            self.bank,
            steps=self.server_steps,
            batch_size=self.server_batch_size,
            seed=self.seed,
            server_round=server_round,
            augment=self._augment,
        )


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
    """Take optimizer steps on minibatches of a bank: one round's training, or a baseline's.

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
    """
    device = server_model.device
    order = generator(seed, server_round, SERVER_STREAM, _MINIBATCHES)
    augmentation = torch.Generator(device)
    stream = generator(seed, server_round, SERVER_STREAM, _AUGMENTATION)
    augmentation.manual_seed(int(stream.integers(2**63)))
    total = torch.zeros((), device=device)
    started = logged_at = time.perf_counter()
    for step, batch in enumerate(bank.minibatches(batch_size, steps, order, device), start=1):
        samples, targets, weights = batch
        if augment is not None:
            samples = augment(samples, augmentation)
        total += server_model.step((samples, targets, weights))
        now = time.perf_counter()
        if now - logged_at >= _LOG_SECONDS:
            logged_at = now
            mean, speed = float(total) / step, step / (now - started)
            log(INFO, "\ttraining: %d/%d steps, loss %.4f, %.1f steps/s", step, steps, mean, speed)
    return float(total) / steps if steps else float("nan")
