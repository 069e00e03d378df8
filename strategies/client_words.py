"""What a client said of its own failure, out of what Flower makes of it."""

import re

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_WRAPPED = re.compile(r"<class '.*?'>:<'(.*)'>", re.DOTALL)
_SAID = "Message: "  # ahead of the words of whatever an app on a client raises
_LONGEST = 600


def client_words(reason: str | None) -> str:
    """Return the reason of an ``Error`` reply as one line, without the ways that it came.

    A SuperNode gives the type and text of the exception; the simulation engine gives Ray's, whose
    text is two tracebacks with the client's words at the end.
    """
    text = _ANSI.sub("", reason or "").strip()
    wrapped = _WRAPPED.fullmatch(text)
    if wrapped:
        text = wrapped[1]
    before, said, words = text.rpartition(_SAID)
    line = " ".join((words if said else before + words).split())
    if not line:
        return "no reason given"
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."
