"""The baseline: minibatch SGD from compressed gradients, one optimizer step per round."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from codec import Compression, Criterion
from codec.gradients.majority_vote import majority
from codec.learning.batch_norm import pooled_statistics, statistics
from codec.messages import (
    AveragingOptions,
    ClientOptions,
    GradientOptions,
    GradientRequest,
    Participation,
)
from codec.options import pick, split_options, takes_options, values_of
from strategies.averaging import clipped
from strategies.baselines.statistics import StatisticsOptions
from strategies.evaluation import EvaluationOptions
from strategies.participation import nodes_of_round, train_messages
from strategies.received_gradient import Arrays, ReceivedGradient, read_gradient
from strategies.round_book import RoundBook, RoundResult
from strategies.server_model import ModelLike, OptimizerLike, SchedulerLike, ServerModel
from strategies.server_strategy import ServerStrategy


@takes_options(
    GradientOptions, StatisticsOptions, Participation, EvaluationOptions, AveragingOptions
)
class GradientCompression(ServerStrategy):
    r"""One optimizer step per round on the average of the clients' compressed gradients.

    Each client k draws $b_k$ samples, epoch by epoch, takes the gradient $g_k$ of
    their mean loss at the model that it was sent, and replies with $C(g_k)$, with error
    feedback where the compressor has it. The server steps its optimizer along
    $\sum_k b_k C(g_k) / \sum_k b_k$. With "fp32" that is centralized SGD on the union of the
    minibatches, as long as the model has no batch normalization. `compression` "none" is "fp32".

    How momentum is handled:

    - "fp32", "fp16", "qsgd" (Alistarh et al., NeurIPS 2017), "terngrad" (Wen et al., NeurIPS 2017),
      "rand-k" (Wangni et al., NeurIPS 2018), "eden" (Vargaftik et al., ICML 2022): by the server's
      optimizer, after averaging. Those compressors keep nothing, and every worker of those papers
      would make the same step from the same average.
    - "powersgd" (Vogels et al., NeurIPS 2019, algorithm 2): likewise; error feedback is in the
      compressor and momentum is applied to the decompressed average, with Nesterov's momentum as
      in the paper if the optimizer has it.
    - "sign" with error feedback (Karimireddy et al., ICML 2019): in the same order, that of
      PowerSGD's algorithm 2, which takes any compressor.
    - "top-k" (Stich et al., NeurIPS 2018): the same, or with `momentum_correction` on the clients
      as in deep gradient compression (Lin et al., ICLR 2018, section 3.2, with momentum factor
      masking); the optimizer must then have none.
    - "sign" by `majority_vote` (Bernstein et al., ICLR 2019): signSGD, or with
      `momentum_correction` on the clients Signum (algorithm 1; 0.9 is the paper's default). The
      step is the sign of the sum of the clients' signs, whatever their numbers of samples; its
      learning rate is to be small.

    Batch normalization takes its running statistics from the clients, as the server sees no
    samples: every `buffers_every` rounds and in the last one, each client measures them on
    `buffer_batches` minibatches at the model that it was sent, and sends them in half precision.

    Parameters
    ----------
    model, optimizer, criterion, scheduler, device, channels_last
        See `ServerModel`; the criterion is that of its ``evaluate``.
    on_round : callable, optional
        Called with the `RoundResult` at the end of each round's training.

    Attributes
    ----------
    compressor : GradientCompressor
        Decoder of the gradients.

    Raises
    ------
    ValueError
        If an option is out of its range, or contradicts another.
    """

    request: GradientRequest

    def __init__(
        self,
        model: ModelLike,
        optimizer: OptimizerLike,
        criterion: Criterion | None = None,
        scheduler: SchedulerLike | None = None,
        *,
        device: str = "auto",
        channels_last: str | bool = "auto",
        on_round: Callable[[RoundResult], None] | None = None,
        **options: Any,
    ) -> None:
        asked, self.statistics_options, participation, evaluation, self.averaging = split_options(
            options,
            GradientOptions,
            StatisticsOptions,
            Participation,
            EvaluationOptions,
            AveragingOptions,
        )
        if not asked.compression:
            asked = replace(asked, compression=Compression("fp32"))
        request = pick(
            GradientRequest, asked, server_round=1, **values_of(participation, ClientOptions)
        )
        server_model = ServerModel(
            model,
            optimizer,
            criterion,
            scheduler,
            device=device,
            amp=False,
            channels_last=channels_last,
        )
        server_model.check_gradients(loss_known=False)
        if request.momentum_correction and _has_momentum(server_model.optimizer):
            raise ValueError(
                f"momentum_correction = {request.momentum_correction} takes the place of the "
                "optimizer's momentum, which must be 0"
            )
        told = (asked, self.statistics_options, self.averaging, participation, evaluation)
        book = RoundBook(on_round)
        super().__init__(server_model, book, request, told, evaluation, participation)
        self.compressor = request.compressor()
        self._statistics = statistics(server_model.model)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the round's nodes for a gradient each, and for statistics when they are due."""
        arrays, config = self.prepare(arrays, config)
        options = self.statistics_options
        due = self._statistics and self.is_due(server_round, options.buffers_every)
        buffers = options.buffer_batches if due else 0
        request = replace(self.request, server_round=server_round, buffers=buffers)
        node_ids = nodes_of_round(
            grid, self.participation, server_round, timeout=self.timeout, busy=self.busy()
        )
        messages = train_messages(node_ids, lambda _: request, config, arrays)
        self.book.begin(server_round, messages)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Step along the average gradient; returns the new arrays and the round's metrics."""
        accepted = self.collect(server_round, replies, self.read)
        before = self.steps_taken
        with self.book.stage("train"):
            loss = self.learn(server_round, accepted)
        metrics = self.finish(server_round, accepted, self.steps_taken - before, loss)
        return self.current_arrays(), metrics

    def read(self, message: Message) -> ReceivedGradient:
        """Decompress and check a reply; `BadReply` if it cannot be used."""
        shapes = [tuple(parameter.shape) for parameter in self.server_model.trainable()]
        return read_gradient(
            message, self.compressor, shapes, self._statistics, self.request.batch_size
        )

    def learn(self, server_round: int, replies: list[ReceivedGradient]) -> float:
        """Take one step, and the statistics that came with it; none without a gradient.

        Returns
        -------
        float
            NaN: only the clients know the loss.
        """
        sent = [reply for reply in replies if reply.gradient]
        if sent:
            step = self._joined_gradient(sent)
            self.server_model.apply_gradient([torch.from_numpy(part) for part in step])
        self._take_statistics(replies)
        return float("nan")

    def _joined_gradient(self, replies: list[ReceivedGradient]) -> Arrays:
        if self.request.majority_vote:
            return majority([reply.gradient for reply in replies])
        gradients = [clipped(reply.gradient, self.averaging.clip_norm) for reply in replies]
        return average(gradients, [reply.num_examples for reply in replies])

    def _take_statistics(self, replies: list[ReceivedGradient]) -> None:
        """Give the model the clients' statistics of batch normalization, if any sent them."""
        sent = [(reply.buffers, reply.num_examples) for reply in replies if reply.buffers]
        if sent:
            self.server_model.set_statistics(pooled_statistics(*zip(*sent, strict=True)))


def average(parts: list[Arrays], weights: list[int]) -> Arrays:
    """Return the weighted average of lists of arrays of equal shapes."""
    total = sum(weights)
    result = [array * np.float32(weights[0] / total) for array in parts[0]]
    for arrays, weight in zip(parts[1:], weights[1:], strict=True):
        for own, array in zip(result, arrays, strict=True):
            own += array * np.float32(weight / total)
    return result


def _has_momentum(optimizer: torch.optim.Optimizer) -> bool:
    return any(group.get("momentum") for group in optimizer.param_groups)
