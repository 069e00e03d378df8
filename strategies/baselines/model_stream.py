"""The model as its changes on their way to the clients, with error feedback on the server."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.gradients import GradientCompressor
from codec.gradients.model_stream import VERSION_BYTES, Parameters, changed, version_of


@dataclass(frozen=True)
class _Update:
    """A published change.

    Attributes
    ----------
    before : bytes
        Version that it changes.
    data : bytes
    """

    before: bytes
    data: bytes


class ModelStream:
    """What clients have of the server's model, and what brings them up to date.

    The server publishes compressed changes. Each is that of what clients have to the server's own
    model, so that what one leaves out is in the next: the sum of what was sent, and what is still
    missing, is the sum of the model's steps.

    A node is sent the changes since the version that it is known to have, as they were coded, or
    the whole model where that is smaller. A node whose reply is missing may have either version
    of its last request; as requests name the versions between changes, it finds its own.

    Parameters
    ----------
    compressor : GradientCompressor
        Of the changes, tensors joined where it joins them.
    """

    def __init__(self, compressor: GradientCompressor) -> None:
        self._compressor = compressor
        self._parameters: Parameters | None = None
        self._version = b""
        self._updates: list[_Update] = []  # that lead to the version, the oldest first
        self._known: dict[int, bytes] = {}
        self._asked: dict[int, bytes] = {}  # what a node's reply will show that it has

    @property
    def parameters(self) -> Parameters:
        """What clients have once they have all changes; trainable parameters in their order."""
        assert self._parameters is not None, "publish first"
        return self._parameters

    def reset(self) -> None:
        """Begin anew: the model has become another one, and all need it whole."""
        self._parameters, self._version = None, b""
        self._updates, self._known, self._asked = [], {}, {}

    def publish(self, model: Sequence[NDArray[Any]], generator: np.random.Generator) -> None:
        """Bring what clients have nearer to the server's own model.

        Parameters
        ----------
        model : sequence of float arrays
            The server's trainable parameters.
        generator : numpy.random.Generator
            Randomness of the compressor.
        """
        if self._parameters is None:
            self._parameters = [values.copy() for values in model]
            self._version = version_of(self._parameters)
            return
        pairs = zip(model, self._parameters, strict=True)
        missing = [(own - theirs).astype(np.float32) for own, theirs in pairs]
        if not any(part.any() for part in missing):
            return
        data, _ = self._compressor.compress(missing, None, generator)
        self._updates.append(_Update(self._version, data))
        self._parameters = changed(self._parameters, data)
        self._version = version_of(self._parameters)

    def since(self, node_id: int, whole_bytes: int) -> tuple[bytes, tuple[bytes, ...]] | None:
        """Return what a node lacks: the versions before and after each change, and the changes.

        Parameters
        ----------
        node_id : int
        whole_bytes : int
            Of the whole model.

        Returns
        -------
        (bytes, tuple of bytes) or None
            None if the whole model is to be sent; `version` goes with that.
        """
        known = self._known.get(node_id)
        self._asked[node_id] = self._version
        if known == self._version:
            return self._version, ()
        self._forget_beyond(whole_bytes)
        starts = [place for place, update in enumerate(self._updates) if update.before == known]
        if not starts:
            # It may have this one now, or what it had before: nothing is known.
            self._known.pop(node_id, None)
            return None
        updates = self._updates[starts[-1] :]
        versions = b"".join(update.before for update in updates) + self._version
        return versions, tuple(update.data for update in updates)

    @property
    def version(self) -> bytes:
        """Version of `parameters`."""
        return self._version

    def arrived(self, node_id: int, *, lacks: bool) -> None:
        """Take note of an accepted reply: the node has what it was asked with, or says not."""
        version = self._asked.pop(node_id, None)
        if lacks:
            self._known.pop(node_id, None)
        elif version is not None:
            self._known[node_id] = version

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps.

        Not who has which version: what a client keeps ends with its run, and each gets the whole
        model.
        """
        return {"parameters": list(self._parameters or ())}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        self.reset()
        if state["parameters"]:
            self._parameters = [np.array(values) for values in state["parameters"]]
            self._version = version_of(self._parameters)

    def _forget_beyond(self, whole_bytes: int) -> None:
        """Drop the oldest changes that nobody will be sent: a whole model is smaller."""
        total = sum(len(update.data) + VERSION_BYTES for update in self._updates)
        while self._updates and total >= whole_bytes:
            total -= len(self._updates.pop(0).data) + VERSION_BYTES
