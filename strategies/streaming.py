"""Minibatch SGD from quantized samples, one optimizer step per round."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from codec import (
    Augmentation,
    Criterion,
    DecodeLimits,
    SampleSpec,
    batch_losses,
    dropout_seed,
    keyed_augmentation,
    losses_gradient,
)
from codec.messages import (
    AveragingOptions,
    ClientOptions,
    MixedOptions,
    Participation,
    StreamingOptions,
    StreamingRequest,
)
from codec.options import pick, split_options, takes_options, values_of
from strategies.agreement import Agreement
from strategies.averaging import clipped_tensors
from strategies.evaluation import EvaluationOptions
from strategies.expectation import Expectation
from strategies.received import LARGEST, BadReply, Received
from strategies.received_gradient import ReceivedGradient
from strategies.received_samples import ReceivedSamples
from strategies.round_book import RoundBook, RoundResult
from strategies.sample_strategy import SampleStrategy
from strategies.server_model import ModelLike, OptimizerLike, SchedulerLike, ServerModel


@takes_options(StreamingOptions, Participation, EvaluationOptions, MixedOptions, AveragingOptions)
class QuantizedDataStreaming(SampleStrategy):
    r"""One optimizer step per round on the clients' quantized minibatches.

    Each client draws a minibatch of $b_k$ samples, keeps sample i with weight
    $w_i = 1/p_i$, and sends the kept ones quantized, with an optional compressed residual
    $r_k$ of the gradient. With $B = \sum_k b_k$, the server steps along

    $$g = \sum_k \frac{b_k}{B} \left( \frac{1}{b_k} \sum_i w_i
        \nabla \ell(w; \hat x_i, y_i) + r_k \right)$$

    Gradients are taken payload by payload: samples of several clients in one batch would change
    BatchNorm's statistics, and the residual would no longer fit. With a lossless residual g is the
    gradient of the clients' original minibatches; with a lossless codec, importance ``all``
    and no residual likewise.

    In a `mixed` federation the devices that share no samples answer with a compressed gradient of
    their minibatch (`clients.baselines.train_gradient`, any compressor), which is averaged with
    the others. Or with a model of their own training, as in replay: the new model is then the mean
    of theirs, weighted by ``num-examples``, and the server's, weighted by the examples behind its
    step.

    Parameters
    ----------
    model, optimizer, criterion, scheduler, device, amp, channels_last
        See `ServerModel`. With a refinement autocast stays off, since the residual was
        taken in float32.
    augment : callable, optional
        ``(samples, torch.Generator) -> samples`` on each client's decoded samples, as the model
        sees them. Not with a refinement, which the client takes at its plain samples.
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

    Raises
    ------
    ValueError
        If an option is out of its range; names option, value and range.
    """

    request: StreamingRequest
    takes_gradients = True

    def __init__(
        self,
        model: ModelLike,
        optimizer: OptimizerLike,
        criterion: Criterion | None = None,
        scheduler: SchedulerLike | None = None,
        *,
        augment: Augmentation | None = None,
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
        asked, participation, evaluation, mixed, averaging = split_options(
            options,
            StreamingOptions,
            Participation,
            EvaluationOptions,
            MixedOptions,
            AveragingOptions,
        )
        request = pick(
            StreamingRequest, asked, server_round=0, **values_of(participation, ClientOptions)
        )
        compressor = request.refinement.compressor()
        if augment is not None and compressor is not None:
            raise ValueError(f"augment must be None with refinement {request.refinement.kind}")
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
        server_model.check_gradients(loss_known=not mixed.mixed)
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
                batch_size=request.batch_size,
                per_sample=request.weighs_samples,
                gradients=True,
            ),
            expected=Expectation.of(
                request,
                shape=sample_shape,
                gradient_shapes=[tuple(p.shape) for p in server_model.trainable()],
                limits=limits,
            ),
            participation=participation,
            mixed=mixed,
            averaging=averaging,
            options=[asked],
        )

    def request_to(self, node_id: int, request: StreamingRequest) -> StreamingRequest:
        """Return the request: all nodes are asked the same."""
        return request

    def train(self, server_round: int, accepted: Sequence[Received]) -> tuple[float, int]:
        """Step along the average of a round's gradients; see `learn`."""
        of_use = (ReceivedSamples, ReceivedGradient)
        found = [received for received in accepted if isinstance(received, of_use)]
        return self.learn(server_round, found), sum(received.num_examples for received in found)

    def learn(
        self, server_round: int, replies: Sequence[ReceivedSamples | ReceivedGradient]
    ) -> float:
        """Take one step along the average of the clients' gradients; none without a gradient.

        Returns
        -------
        float
            Weighted mean loss on the decoded samples; NaN when no step was taken, or none arrived.

        Raises
        ------
        DivergedError
            If not one of the clients' losses is finite.
        """
        total: list[Tensor] = []
        examples, loss, known, bad_losses = 0, 0.0, 0, []
        for reply in replies:
            if reply.num_examples == 0:
                continue
            try:
                gradient, client_loss = self._client_gradient(server_round, reply)
            except Exception as error:  # out of the host's own model or criterion: of any type
                self.book.reject(reply.node_id, BadReply("fit", f"{error!s:.200}"))
                continue
            if not all(_is_moderate(part) for part in gradient):
                detail = (
                    f"gradient holds more than {LARGEST:g}, or NaN; the model may have diverged"
                )
                self.book.reject(reply.node_id, BadReply("not-finite", detail))
                bad_losses.append(client_loss)
                continue
            part_of_all = clipped_tensors(gradient, self.averaging.clip_norm)
            scaled = [part * reply.num_examples for part in part_of_all]
            total = [a + b for a, b in zip(total, scaled, strict=True)] if total else scaled
            examples += reply.num_examples
            if client_loss is not None:
                known += reply.num_examples
                loss += client_loss * reply.num_examples
        mean = loss / known if known else float("nan")
        if examples:
            gradient = [part / examples for part in total]
            self.server_model.apply_gradient(gradient, mean if known else None)
        elif bad_losses:
            losses = torch.tensor([found for found in bad_losses if found is not None])
            self.server_model.check_finite(losses, self.steps_taken + 1)
        return mean

    def _client_gradient(
        self, server_round: int, reply: ReceivedSamples | ReceivedGradient
    ) -> tuple[list[Tensor], float | None]:
        """Gradient that a client sent, or at its decoded samples plus its residual; the loss."""
        if isinstance(reply, ReceivedGradient):
            device = self.server_model.device
            return [torch.from_numpy(part).to(device) for part in reply.gradient], None
        gradient, loss = self._sample_gradient(server_round, reply)
        if reply.refinement is not None:
            gradient = [
                part + torch.from_numpy(residual).to(part)
                for part, residual in zip(gradient, reply.refinement, strict=True)
            ]
        return gradient, loss

    def _sample_gradient(
        self, server_round: int, reply: ReceivedSamples
    ) -> tuple[list[Tensor], float]:
        """Gradient at a client's decoded samples, and the loss there; zeros without samples."""
        server, decoded, count = self.server_model, reply.decoded, reply.num_examples
        if decoded is None:
            return [torch.zeros_like(p, dtype=torch.float32) for p in server.trainable()], 0.0
        key = (self.request.seed, server_round, self.client_key(reply))
        with server.autocast(), torch.random.fork_rng():
            torch.manual_seed(dropout_seed(*key))
            losses = batch_losses(
                server.model,
                server.criterion,
                decoded.samples,
                decoded.targets,
                spec=reply.payloads[0][0].spec,
                scale=self.request.scale,
                augment=keyed_augmentation(self._augment, *key, server.device),
            )
            gradient = losses_gradient(server.model, losses, decoded.weights, count)
        weights = torch.as_tensor(decoded.weights, device=server.device)
        return gradient, float(losses.mean_of(count, weights).detach())


def _is_moderate(part: Tensor) -> bool:
    """Whether all is finite, and will be in a sum over clients."""
    return not part.numel() or bool(part.abs().max() <= LARGEST)
