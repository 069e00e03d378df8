"""The scout that a client has: the one that came last, which the next request may change."""

from flwr.app import ConfigRecord, RecordDict

from codec.learning.scout import Scout
from codec.learning.scout_bytes import base_of, digest, from_bytes, to_bytes

STATE_KEY = "quantized-data-scout"
_WHOLE = "whole"


def receive_scout(data: bytes | None, state: RecordDict) -> tuple[Scout | None, bool]:
    """Read a request's scout and remember it.

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
    base, named = None, base_of(data)
    if named:
        record = state.get(STATE_KEY)
        kept = record.get(_WHOLE) if isinstance(record, ConfigRecord) else None
        if not isinstance(kept, bytes) or digest(kept) != named:
            return None, True
        base = from_bytes(kept)
    scout = from_bytes(data, base)
    state[STATE_KEY] = ConfigRecord({_WHOLE: to_bytes(scout)})
    return scout, False
