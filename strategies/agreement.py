"""What both ends agree on before a sample is paid for."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from logging import INFO
from typing import Any

from flwr.common import log

from codec import CodecError, DecodeLimits, SampleSpec
from codec.messages import Description, ReplayRequest, Request, Terms
from codec.samples.choice import codecs_at_hand
from codec.samples.options import AUTO
from strategies.errors import RunFailed
from strategies.rehearsal import RehearsalError
from strategies.server_model import ServerModel

NODES_ASKED = 3  # for a description, at once: a node that is unlike the others is outvoted
_FRUITLESS = 3  # rounds in a row in which all say why they cannot describe their samples
_SHOWN = 12  # class names in the log
_SPEC = ("shape", "dtype", "low", "high", "classes", "target_size")  # what is agreed on

Kind = tuple[object, ...]


class Agreement:
    """Settles the terms of a run: what samples are like, and that the model can learn from them.

    What the caller states is rehearsed as it is. Else some nodes are asked to describe their
    samples, and what most of them say is rehearsed first; samples that the model cannot learn from
    do not count.

    The terms travel in every request, since clients keep nothing of them: 32 bytes for CIFAR-10,
    128 with the names of its classes, some 1,300 with a hundred names.

    Parameters
    ----------
    server_model : ServerModel
    request : Request
        What clients will be asked; tells how samples are scaled.
    spec : SampleSpec, optional
        What the samples are. None: nodes are asked.
    shape : tuple of int, optional
        Shape that samples must have, whatever a node says.
    class_names : sequence of str
        The server's classes in the order of its labels; empty: those of the nodes that are asked,
        if they have any.
    limits : DecodeLimits
        What a payload may make the server allocate.
    batch_size : int
        Samples of an optimizer step.
    per_sample : bool
        Whether the loss of each sample is needed, as for importance weights.
    gradients : bool
        Whether steps are taken along gradients that were summed before.

    Attributes
    ----------
    terms : Terms or None
        None until they are settled.
    spec : SampleSpec or None
        What the samples are, by then.
    batch_size : int
    """

    def __init__(
        self,
        server_model: ServerModel,
        request: Request,
        *,
        spec: SampleSpec | None,
        shape: tuple[int, ...] | None,
        class_names: Sequence[str],
        limits: DecodeLimits,
        batch_size: int,
        per_sample: bool,
        gradients: bool = False,
    ) -> None:
        self._server_model, self._scale = server_model, request.scale
        self._stated, self._class_names, self._limits = spec, tuple(class_names), limits
        self._shape = None if shape is None else tuple(shape)
        self.batch_size, self._per_sample, self._gradients = batch_size, per_sample, gradients
        self._chooses = isinstance(request, ReplayRequest) and request.codec.codec == AUTO
        self._misfits: dict[int, str] = {}
        self._fruitless = 0
        self.terms: Terms | None = None
        self.spec: SampleSpec | None = None

    def kept(self) -> dict[str, Any]:
        """Return what is settled, for a checkpoint."""
        return {
            "terms": self.terms and self.terms.to_bytes(),
            "spec": self.spec and {name: getattr(self.spec, name) for name in _SPEC},
        }

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Take over what `kept` returned."""
        self.terms = None if kept["terms"] is None else Terms.from_bytes(kept["terms"])
        self.spec = None if kept["spec"] is None else SampleSpec(**kept["spec"])

    def state(self) -> None:
        """Settle what the caller stated, if that says it all.

        Raises
        ------
        CodecError, RehearsalError
            If the model cannot learn from such samples, or the caller contradicts itself.
        """
        if self.terms is None and self._stated is not None:
            self._check_shape(self._stated)
            self.terms = self._terms_of(self._stated, self._class_names)

    def settle(
        self,
        node_ids: Sequence[int],
        ask: Callable[[Sequence[int]], Mapping[int, Description | str]],
        *,
        most: int = NODES_ASKED,
    ) -> Terms | None:
        """Ask for descriptions, unless the terms are settled; None while nothing is agreed on.

        Parameters
        ----------
        node_ids : sequence of int
            The round's nodes.
        ask : callable
            From nodes to their descriptions, or what they said instead; silent ones are left out.
        most : int
            Nodes to ask at once.

        Raises
        ------
        RunFailed
            If no node's samples fit the model, or for some rounds all nodes asked have said why
            they cannot describe theirs; with what each of them said.
        """
        if self.terms is None and node_ids:
            # Those that have not failed yet go first.
            asked = sorted(node_ids, key=lambda node_id: node_id in self._misfits)[:most]
            answers = ask(asked)
            self.terms = self._agreed(answers)
            if self.terms is None:
                self._check_hope(node_ids, asked, answers)
        return self.terms

    def _agreed(self, answers: Mapping[int, Description | str]) -> Terms | None:
        described = {n: d for n, d in answers.items() if isinstance(d, Description)}
        votes = Counter(map(_kind, described.values()))

        def rank(node_id: int) -> tuple[int, int]:
            # Of one kind the most classes first: some count those that they have seen.
            return votes[_kind(described[node_id])], described[node_id].classes

        for node_id in sorted(described, key=rank, reverse=True):
            try:
                terms = self._terms_of_description(described[node_id])
            except (CodecError, RehearsalError) as error:
                self._misfits[node_id] = str(error)
                continue
            self._tell(node_id, described[node_id], terms)
            return terms
        self._misfits |= {n: words for n, words in answers.items() if isinstance(words, str)}
        return None

    def _check_hope(
        self,
        node_ids: Sequence[int],
        asked: Sequence[int],
        answers: Mapping[int, Description | str],
    ) -> None:
        """Raise `RunFailed` if nobody's samples fit, or nobody says what they are for too long."""
        all_say_why = len(answers) == len(asked)
        self._fruitless = self._fruitless + 1 if all_say_why else 0
        all_misfit = not any(isinstance(answer, str) for answer in answers.values())
        nobody_left = all_say_why and all_misfit and set(node_ids) <= self._misfits.keys()
        if nobody_left or self._fruitless >= _FRUITLESS:
            told: dict[str, int] = {}
            for node_id in asked:
                told.setdefault(self._misfits[node_id], node_id)
            words = "; ".join(f"node {node_id}: {said}" for said, node_id in told.items())
            raise RunFailed(
                f"the clients' samples and the server's model do not fit; nothing was sent. {words}"
            )

    def _terms_of_description(self, described: Description) -> Terms:
        spec = SampleSpec(
            described.shape,
            described.dtype,
            described.low,
            described.high,
            described.classes,
            described.target_size,
        )
        self._check_shape(spec)
        names = self._class_names or described.class_names
        try:
            return self._terms_of(spec, names)
        except RehearsalError as error:
            # Floats that are whole are labels where the model's outputs cannot be such floats.
            if not described.whole:
                raise
            try:
                classes = max(self._server_model.probe(spec.shape, spec.dtype))
                return self._terms_of(replace(spec, classes=classes, target_size=0), names)
            except Exception:  # the model's own, or a second rehearsal's
                raise error from None

    def _check_shape(self, spec: SampleSpec) -> None:
        if self._shape is not None and spec.shape != self._shape:
            raise CodecError(f"samples are {spec.shape}; sample_shape is {self._shape}")

    def _terms_of(self, spec: SampleSpec, names: Sequence[str]) -> Terms:
        """Rehearse a step on samples of a spec; return the terms that follow."""
        self._server_model.rehearse(
            spec,
            self._scale,
            self.batch_size,
            per_sample=self._per_sample,
            gradients=self._gradients,
        )
        outputs = self._server_model.probe(spec.shape, spec.dtype)
        # A single output may tell two classes apart; more dimensions are the criterion's affair.
        count = max(*outputs[:1], 1, spec.classes) if len(outputs) < 2 else 0
        if names and count and len(names) > count:
            raise CodecError(
                f"there are {len(names)} class names, the model has {count} outputs; legal: at "
                "most as many names as outputs"
            )
        self.spec = spec
        return Terms(
            shape=spec.shape,
            outputs=count,
            class_names=tuple(names) if spec.classes else (),
            samples=self._limits.samples,
            values=self._limits.values,
            values_per_byte=self._limits.values_per_byte,
            codecs=codecs_at_hand() if self._chooses else Terms.codecs,
        )

    def _tell(self, node_id: int, described: Description, terms: Terms) -> None:
        """Log what was agreed on, and whose class names count if the server has none."""
        classes = self.spec.classes if self.spec else 0
        targets = f"{classes} classes" if classes else "float targets"
        text = "samples are %s %s in [%g, %g] with %s, as of node %d"
        values = described.dtype, described.shape, described.low, described.high, targets, node_id
        log(INFO, text, *values)
        if terms.class_names and not self._class_names:
            named = ", ".join(terms.class_names[:_SHOWN])
            more = ", ..." if len(terms.class_names) > _SHOWN else ""
            text = (
                "classes are those of node %d: %s%s; labels of other nodes are mapped by name, and "
                "samples of other classes skipped. Pass class_names= to state your own"
            )
            log(INFO, text, node_id, named, more)


def _kind(described: Description) -> Kind:
    """Return what descriptions must share to be of one kind."""
    return (
        described.shape,
        described.dtype,
        bool(described.classes),
        described.target_size,
        described.class_names,
    )
