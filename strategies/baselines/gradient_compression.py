"""The rival: minibatch SGD from compressed gradients, one optimizer step per round."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Message
from numpy.typing import NDArray

from codec import Compression, Criterion
from codec.gradients.gradient_options import GradientOptions
from codec.gradients.majority_vote import majority
from codec.learning.batch_norm import pooled_statistics, statistics
from strategies.accounted_strategy import RoundResult
from strategies.client_reply import (
    BadReply,
    ClientReply,
    decoded_statistics,
    decompressed,
    payload_record,
    read_bytes,
    read_integer,
    read_memory_bytes,
    read_seconds,
)
from strategies.options import check_range, is_due
from strategies.server_model import ModelLike, OptimizerLike, SchedulerLike, ServerModel
from strategies.server_strategy import Entries, ServerStrategy

Arrays = list[NDArray[np.float32]]


@dataclass(frozen=True)
class GradientReply(ClientReply):
    """A gradient that passed every check.

    Attributes
    ----------
    num_examples : int
        Size of the minibatch.
    gradient : list of float32 arrays
        Decompressed, of the mean loss; signs for majority vote.
    buffers : list of float32 arrays, optional
        Statistics of batch normalization, if the client sent them.
    """

    gradient: Arrays
    buffers: Arrays | None


class GradientCompression(ServerStrategy[GradientReply]):
    r"""One optimizer step per round on the average of the clients' compressed gradients.

    Each client k draws :math:`b_k` samples, epoch by epoch, takes the gradient :math:`g_k` of
    their mean loss at the model that it was sent, and replies with :math:`C(g_k)`, with error
    feedback where the compressor has it. The server steps its optimizer along
    :math:`\sum_k b_k C(g_k) / \sum_k b_k`. With "fp32" that is centralized SGD on the union of the
    minibatches, as long as the model has no batch normalization.

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
        See :class:`ServerModel`; the criterion is that of its ``evaluate``.
    compression : Compression or str
        Compressor and rate; a string is the kind, at its default rate. "fp32" for none.
    batch_size : int
        Samples that a client draws per round.
    majority_vote : bool
        With "sign": bare signs and a vote instead of scales and error feedback.
    momentum_correction : float
        In [0, 1), see above.
    buffers_every : int
        Rounds between two evaluations of the model, >= 1.
    buffer_batches : int
        Minibatches for the statistics, >= 1.
    fraction_train, min_available_nodes, seed, on_round
        See :class:`ServerStrategy`.

    Attributes
    ----------
    compressor : GradientCompressor
        Decoder of the gradients.

    Raises
    ------
    ValueError
        If an option is out of its range, or contradicts another.
    """

    def __init__(
        self,
        model: ModelLike,
        optimizer: OptimizerLike,
        criterion: Criterion | None = None,
        scheduler: SchedulerLike | None = None,
        *,
        compression: Compression | str = "fp32",
        batch_size: int = 32,
        majority_vote: bool = False,
        momentum_correction: float = 0.0,
        buffers_every: int = 1,
        buffer_batches: int = 4,
        fraction_train: float = 1.0,
        min_available_nodes: int = 1,
        seed: int = 0,
        device: str = "auto",
        channels_last: str | bool = "auto",
        on_round: Callable[[RoundResult], None] | None = None,
    ) -> None:
        check_range("batch_size", batch_size, 1)
        check_range("buffers_every", buffers_every, 1)
        check_range("buffer_batches", buffer_batches, 1)
        if isinstance(compression, str):
            compression = Compression(compression)
        options = GradientOptions(compression, majority_vote, momentum_correction)
        self.compressor = options.compressor()
        server_model = ServerModel(
            model,
            optimizer,
            criterion,
            scheduler,
            device=device,
            amp=False,
            channels_last=channels_last,
        )
        if momentum_correction and _has_momentum(server_model.optimizer):
            raise ValueError(
                f"momentum_correction = {momentum_correction} takes the place of the optimizer's "
                "momentum, which must be 0"
            )
        super().__init__(
            server_model,
            {
                "batch-size": batch_size,
                **compression.entries(),
                "majority-vote": majority_vote,
                "momentum-correction": momentum_correction,
            },
            sends_model=True,
            fraction_train=fraction_train,
            min_available_nodes=min_available_nodes,
            seed=seed,
            on_round=on_round,
        )
        self.batch_size = batch_size
        self.majority_vote = majority_vote
        self.buffers_every = buffers_every
        self.buffer_batches = buffer_batches
        self._statistics = statistics(server_model.model)

    def round_instruction(self, server_round: int) -> Entries:
        """Return how many minibatches the statistics of batch normalization are to come from."""
        due = is_due(server_round, self.buffers_every, self.num_rounds)
        return {"buffers": self.buffer_batches if due and self._statistics else 0}

    def parse(self, message: Message) -> GradientReply:
        """Decompress and check a reply; `BadReply` if it cannot be used."""
        record = payload_record(message)
        num_examples = read_integer(record, "num-examples")
        if not 1 <= num_examples <= self.batch_size:
            raise BadReply("count", f"num-examples is {num_examples}, not 1 to {self.batch_size}")
        packed = {"gradient": read_bytes(record, "gradient")}
        shapes = [tuple(parameter.shape) for parameter in self.server_model.trainable()]
        gradient = decompressed(packed["gradient"], "gradient", self.compressor, shapes)
        buffers = None
        if "buffers" in record:
            packed["buffers"] = read_bytes(record, "buffers")
            buffers = decoded_statistics(packed["buffers"], self._statistics)
        return GradientReply(
            node_id=message.metadata.src_node_id,
            client=read_integer(record, "client"),
            num_examples=num_examples,
            sections={key: len(data) for key, data in packed.items()},
            seconds={stage: read_seconds(record, stage) for stage in ("gradient", "compress")},
            memory_bytes=read_memory_bytes(record),
            gradient=gradient,
            buffers=buffers,
        )

    def learn(self, server_round: int, replies: list[GradientReply]) -> float:
        """Take one step, and the statistics that came with it; none without a gradient.

        Returns
        -------
        float
            NaN: only the clients know the loss.
        """
        if replies:
            weights = [reply.num_examples for reply in replies]
            gradients = [reply.gradient for reply in replies]
            step = majority(gradients) if self.majority_vote else average(gradients, weights)
            self.server_model.apply_gradient([torch.from_numpy(part) for part in step])
        sent = [(reply.buffers, reply.num_examples) for reply in replies if reply.buffers]
        if sent:
            pooled = pooled_statistics(*zip(*sent, strict=True))
            for tensor, array in zip(self._statistics, pooled, strict=True):
                tensor.copy_(torch.from_numpy(array))
        return float("nan")


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
