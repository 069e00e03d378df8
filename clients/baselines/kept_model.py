"""The model that a client keeps, so that the server need send no more than its changes."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from clients.arrays import array_view, load_model, packed
from codec.gradients.model_stream import changed, split_versions, version_of
from codec.learning.state import trainable_names
from codec.messages import LocalRequest

if TYPE_CHECKING:
    from torch import nn

MODEL_KEY, VERSION_KEY = "kept-model", "kept-model-version"
_VERSION = "version"


def receive_model(
    factory: "Callable[[], nn.Module]", arrays: object, request: LocalRequest, state: RecordDict
) -> "nn.Module | None":
    """Return the model of a request, in training mode, and keep it if asked to.

    Parameters
    ----------
    factory : callable
        Of the model.
    arrays : object
        What the request brings of the model's state: an ``ArrayRecord``, or nothing.
    request : LocalRequest
    state : RecordDict
        The client's own.

    Returns
    -------
    torch.nn.Module or None
        None if the request changes a model that the client does not have.

    Raises
    ------
    CodecError
        If the state does not fit the model, or an update is malformed.
    """
    if not request.versions:
        return load_model(factory, arrays)
    versions = split_versions(request.versions)
    if arrays is None:
        arrays = _brought_up(factory, request, versions, state)
        if arrays is None:
            return None
    network = load_model(factory, arrays)
    assert isinstance(arrays, ArrayRecord)  # or it could not be loaded
    state[MODEL_KEY] = arrays
    state[VERSION_KEY] = ConfigRecord({_VERSION: versions[-1]})
    return network


def _brought_up(
    factory: "Callable[[], nn.Module]",
    request: LocalRequest,
    versions: list[bytes],
    state: RecordDict,
) -> ArrayRecord | None:
    """Return the kept model with the updates that it lacks; None if they do not lead there."""
    kept, version = state.get(MODEL_KEY), state.get(VERSION_KEY)
    found = version.get(_VERSION) if isinstance(version, ConfigRecord) else None
    if not isinstance(kept, ArrayRecord) or found not in versions:
        return None
    start = max(place for place, known in enumerate(versions) if known == found)
    if start == len(request.updates):
        return kept
    names = trainable_names(factory())
    parameters = [array_view(kept[same[0]]) for same in names]
    for data in request.updates[start:]:
        parameters = changed(parameters, data)
    if version_of(parameters) != versions[-1]:
        return None
    new = zip(names, map(packed, parameters), strict=True)
    return ArrayRecord({**kept, **{name: array for same, array in new for name in same}})
