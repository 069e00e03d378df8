"""The scouts that a client has: the one that came last, and the one that it changed."""

from flwr.app import ConfigRecord, RecordDict

from codec.learning.scout import Scout
from codec.learning.scout_bytes import base_of, digest, from_bytes, to_bytes

STATE_KEY = "quantized-data-scout"
_LATEST, _BEFORE = "latest", "before"


def receive_scout(data: bytes | None, state: RecordDict) -> tuple[Scout | None, bool]:
    """Read a request's scout and remember it.

    A request may come twice, as from a server that was killed and resumed: what it changed is
    therefore kept, too.

    Parameters
    ----------
    data : bytes or None
        What the request brings.
    state : RecordDict
        The client's own.

    Returns
    -------
    Scout or None
        None if there is none, or it changes one that the client does not have.
    bool
        Whether it does.

    Raises
    ------
    PayloadError
        If the bytes are not a scout.
    """
    if data is None:
        return None, False
    named = base_of(data)
    if not named:
        scout = from_bytes(data)
        state[STATE_KEY] = ConfigRecord({_LATEST: to_bytes(scout)})
        return scout, False
    before = _kept(state, named)
    if before is None:
        return None, True
    scout = from_bytes(data, from_bytes(before))
    state[STATE_KEY] = ConfigRecord({_LATEST: to_bytes(scout), _BEFORE: before})
    return scout, False


def _kept(state: RecordDict, named: bytes) -> bytes | None:
    """Return the whole form of a scout that the client has, by its digest."""
    record = state.get(STATE_KEY)
    for whole in record.values() if isinstance(record, ConfigRecord) else ():
        if isinstance(whole, bytes) and digest(whole) == named:
            return whole
    return None
