"""Minibatch SGD from quantized samples, one optimizer step per round."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from codec import (
    Augmentation,
    CodecOptions,
    Criterion,
    DecodeLimits,
    Refinement,
    batch_gradient,
    dropout_seed,
    keyed_augmentation,
)
from strategies.accounted_strategy import RoundResult
from strategies.client_reply import BadReply
from strategies.options import MODEL_IMPORTANCES, check_filter, check_range
from strategies.quantized_data import QuantizedDataStrategy
from strategies.reply import Expectation, Reply
from strategies.server_model import (
    ModelLike,
    OptimizerLike,
    SchedulerLike,
    ServerModel,
)


class QuantizedDataSGD(QuantizedDataStrategy):
    r"""One optimizer step per round on the clients' quantized minibatches.

    Each client draws a minibatch of :math:`b_k` samples, keeps sample i with weight
    :math:`w_i = 1/p_i`, and sends the kept ones quantized, with an optional compressed residual
    :math:`r_k` of the gradient. With :math:`B = \sum_k b_k`, the server steps along

    .. math:: g = \sum_k \frac{b_k}{B} \left( \frac{1}{b_k} \sum_i w_i
        \nabla \ell(w; \hat x_i, y_i) + r_k \right)

    Gradients are taken payload by payload: samples of several clients in one batch would change
    BatchNorm's statistics, and the residual would no longer fit. With a lossless residual g is the
    gradient of the clients' original minibatches; with the codec ``identity``, importance ``all``
    and no residual likewise.

    Parameters
    ----------
    model, optimizer, criterion, scheduler, device, amp, channels_last
        See :class:`ServerModel`. With a refinement autocast stays off, since the residual was
        taken in float32.
    codec : CodecOptions
        Quantizer and rate of the samples.
    batch_size : int
        Samples that a client draws per round.
    importance : str
        Score: ``"all"``, ``"random"``, ``"loss"``, ``"grad-norm"``, ``"margin"`` or
        ``"entropy"``. The last four need the model on the client, the last two class labels.
    selection : str
        ``"probability"`` (unbiased), ``"threshold"`` or ``"budget"``.
    keep_rate : float
        Share of the minibatch that is kept, in (0, 1].
    uniform_share : float
        Share of the keep probability that is spread evenly, in [0, 1].
    uplink_budget : int
        Bytes that a client may spend on samples per round; 0: unlimited.
    refinement : Refinement or str
        How the residual is compressed; a string is the kind, at its default rate.
    augment : callable, optional
        ``(samples, torch.Generator) -> samples`` on each client's decoded samples, scaled to
        [0, 1]. Not with a refinement, which the client takes at its plain samples.
    fraction_train, min_available_nodes, seed, on_round
        See :class:`ServerStrategy`.
    sample_shape : tuple[int, ...], optional
        Shape of one sample; by default that of the first valid payload.
    limits : DecodeLimits, optional
        What a payload may make the server allocate.

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
        batch_size: int = 32,
        importance: str = "all",
        selection: str = "probability",
        keep_rate: float = 1.0,
        uniform_share: float = 0.2,
        uplink_budget: int = 0,
        refinement: Refinement | str = "none",
        augment: Augmentation | None = None,
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
        check_range("batch_size", batch_size, 1)
        check_filter(importance, selection, keep_rate, uniform_share, uplink_budget)
        if importance == "all" and keep_rate < 1:
            raise ValueError(f"keep_rate must be 1 with importance all, not {keep_rate}")
        if isinstance(refinement, str):
            refinement = Refinement(refinement)
        compressor = refinement.compressor()
        if augment is not None and compressor is not None:
            raise ValueError(f"augment must be None with refinement {refinement.kind}")
        self._augment = augment
        server_model = ServerModel(
            model,
            optimizer,
            criterion,
            scheduler,
            device=device,
            amp=amp if compressor is None else False,
            channels_last=channels_last,
        )
        super().__init__(
            server_model,
            {
                "mode": "sgd",
                "codec": (codec or CodecOptions()).to_bytes(),
                "batch-size": batch_size,
                "importance": importance,
                "selection": selection,
                "keep-rate": keep_rate,
                "uniform-share": uniform_share,
                "uplink-budget": uplink_budget,
                **refinement.entries(),
            },
            sends_model=importance in MODEL_IMPORTANCES or compressor is not None,
            expected=Expectation(
                shape=sample_shape,
                max_examples=batch_size,
                compressor=compressor,
                gradient_shapes=[tuple(p.shape) for p in server_model.trainable()],
                limits=limits or DecodeLimits(),
            ),
            fraction_train=fraction_train,
            min_available_nodes=min_available_nodes,
            seed=seed,
            on_round=on_round,
        )

    def learn(self, server_round: int, replies: list[Reply]) -> float:
        """Take one step along the average of the clients' gradients; none without a gradient.

        Returns
        -------
        float
            Weighted mean loss on the decoded samples; NaN when no step was taken.
        """
        total: list[Tensor] = []
        examples, loss = 0, 0.0
        for reply in replies:
            if reply.num_examples == 0:
                continue
            gradient, client_loss = self._client_gradient(server_round, reply)
            scaled = [part * reply.num_examples for part in gradient]
            if not all(torch.isfinite(part).all() for part in scaled):
                detail = "gradient holds NaN or infinity; the model may have diverged"
                self.reject(reply.node_id, BadReply("not-finite", detail))
                continue
            total = [a + b for a, b in zip(total, scaled, strict=True)] if total else scaled
            examples += reply.num_examples
            loss += client_loss * reply.num_examples
        if not examples:
            return float("nan")
        self.server_model.apply_gradient([part / examples for part in total])
        return loss / examples

    def _client_gradient(self, server_round: int, reply: Reply) -> tuple[list[Tensor], float]:
        """Gradient at a client's decoded samples plus its residual, and the loss there."""
        server = self.server_model
        gradient = [torch.zeros_like(parameter) for parameter in server.trainable()]
        losses: list[Tensor] = []

        def recording(outputs: Tensor, targets: Tensor) -> Tensor:
            values = server.criterion(outputs.float(), targets)
            losses.append(values.detach())
            return values

        loss = 0.0
        if reply.payload is not None and reply.decoded is not None:
            decoded = reply.decoded
            augment = keyed_augmentation(
                self._augment, self.seed, server_round, reply.client, server.device
            )
            with server.autocast(), torch.random.fork_rng():
                torch.manual_seed(dropout_seed(self.seed, server_round, reply.client))
                gradient = batch_gradient(
                    server.model,
                    recording,
                    decoded.samples,
                    decoded.targets,
                    decoded.weights,
                    spec=reply.payload.spec,
                    batch_size=reply.num_examples,
                    augment=augment,
                )
            per_sample = torch.cat(losses).cpu().numpy()
            loss = float(np.dot(decoded.weights, per_sample)) / reply.num_examples
        if reply.refinement is not None:
            gradient = [
                part + torch.from_numpy(residual).to(part)
                for part, residual in zip(gradient, reply.refinement, strict=True)
            ]
        return gradient, loss
