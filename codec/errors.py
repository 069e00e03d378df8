"""Errors that the codec raises."""


class CodecError(ValueError):
    """An argument the codec cannot accept; names the value and the legal range."""


class PayloadError(CodecError):
    """Bytes that are not a payload: truncated, altered, or of another version."""
