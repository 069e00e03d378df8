"""Minibatch SGD from quantized samples, one optimizer step per round."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
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
from codec.messages import ClientOptions, Participation, StreamingOptions, StreamingRequest, Terms
from codec.options import pick, split_options, takes_options, values_of
from strategies.agreement import Agreement
from strategies.participation import nodes_of_round, train_messages
from strategies.received import BadReply
from strategies.received_samples import Expectation, ReceivedSamples, read_samples
from strategies.round_book import RoundBook, RoundResult
from strategies.server_model import ModelLike, OptimizerLike, SchedulerLike, ServerModel
from strategies.server_strategy import EvaluationOptions, ServerStrategy


@takes_options(StreamingOptions, Participation, EvaluationOptions)
class QuantizedDataStreaming(ServerStrategy):
    r"""One optimizer step per round on the clients' quantized minibatches.

    Each client draws a minibatch of :math:`b_k` samples, keeps sample i with weight
    :math:`w_i = 1/p_i`, and sends the kept ones quantized, with an optional compressed residual
    :math:`r_k` of the gradient. With :math:`B = \sum_k b_k`, the server steps along

    .. math:: g = \sum_k \frac{b_k}{B} \left( \frac{1}{b_k} \sum_i w_i
        \nabla \ell(w; \hat x_i, y_i) + r_k \right)

    Gradients are taken payload by payload: samples of several clients in one batch would change
    BatchNorm's statistics, and the residual would no longer fit. With a lossless residual g is the
    gradient of the clients' original minibatches; with a lossless codec, importance ``all``
    and no residual likewise.

    Parameters
    ----------
    model, optimizer, criterion, scheduler, device, amp, channels_last
        See :class:`ServerModel`. With a refinement autocast stays off, since the residual was
        taken in float32.
    augment : callable, optional
        ``(samples, torch.Generator) -> samples`` on each client's decoded samples, as the model
        sees them. Not with a refinement, which the client takes at its plain samples.
    samples : SampleSpec, optional
        What the clients' samples are. By default one of them is asked before the first round;
        either way the model takes a step on made-up samples first.
    sample_shape : tuple[int, ...], optional
        Shape that every sample must have; by default that of `samples`, or what is described.
    class_names : sequence of str
        Classes in the order of the model's outputs: clients map their own labels by name. By
        default those of the client that is asked, if it has any.
    limits : DecodeLimits, optional
        What a payload may make the server allocate.
    on_round : callable, optional
        Called with the :class:`RoundResult` at the end of each round's training.

    Raises
    ------
    ValueError
        If an option is out of its range; names option, value and range.
    """

    request: StreamingRequest

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
        asked, self.participation, evaluation = split_options(
            options, StreamingOptions, Participation, EvaluationOptions
        )
        request = pick(
            StreamingRequest, asked, server_round=0, **values_of(self.participation, ClientOptions)
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
        server_model.check_gradients(loss_known=True)
        super().__init__(
            server_model, RoundBook(on_round), request, (asked, self.participation, evaluation)
        )
        self._agreement = Agreement(
            server_model,
            request,
            spec=samples,
            shape=sample_shape,
            class_names=class_names,
            limits=limits or DecodeLimits(),
            batch_size=request.batch_size,
            per_sample=True,
        )
        self._expected = Expectation(
            shape=sample_shape,
            max_examples=request.batch_size,
            compressor=compressor,
            gradient_shapes=[tuple(p.shape) for p in server_model.trainable()],
            limits=limits or DecodeLimits(),
        )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the round's nodes for a minibatch each."""
        config = self.prepare(arrays, config)
        node_ids = nodes_of_round(grid, self.participation, server_round, timeout=self.timeout)
        terms = self._agreement.settle(server_round, node_ids, grid, self.book, self.timeout)
        request = replace(self.request, server_round=server_round, terms=terms or Terms())
        model = arrays if request.needs_model else None
        messages = train_messages(node_ids if terms else [], lambda _: request, config, model)
        self.book.begin(server_round, messages)
        return messages

    def read(self, message: Message) -> ReceivedSamples:
        """Decode and check a reply; `BadReply` if it cannot be used."""
        terms = self._agreement.terms or Terms()
        shape = self._expected.shape or terms.shape or None
        return read_samples(message, replace(self._expected, shape=shape, outputs=terms.outputs))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Step along the average gradient; returns the new arrays and the round's metrics."""
        node_replies = list(replies)
        accepted = self.book.collect(server_round, node_replies, self.read)
        before = self.steps_taken
        with self.book.stage("train"):
            loss = self.learn(server_round, accepted)
        metrics = self.book.finish(server_round, accepted, self.steps_taken - before, loss)
        self.check_progress(accepted, len(node_replies))
        return self.current_arrays(), self.train_metrics(node_replies, metrics)

    def learn(self, server_round: int, replies: list[ReceivedSamples]) -> float:
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
                self.book.reject(reply.node_id, BadReply("not-finite", detail))
                continue
            total = [a + b for a, b in zip(total, scaled, strict=True)] if total else scaled
            examples += reply.num_examples
            loss += client_loss * reply.num_examples
        if not examples:
            return float("nan")
        self.server_model.apply_gradient([part / examples for part in total], loss / examples)
        return loss / examples

    def _client_gradient(
        self, server_round: int, reply: ReceivedSamples
    ) -> tuple[list[Tensor], float]:
        """Gradient at a client's decoded samples plus its residual, and the loss there."""
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
        return gradient, float(losses.mean_of(count, weights))
