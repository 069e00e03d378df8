"""Errors of the server's side."""

from codec import CodecError


class RunFailed(RuntimeError):
    """A run that cannot learn anything; the message says why, in the clients' own words."""


class CheckpointError(CodecError):
    """A checkpoint that is not there, is damaged, or is of another run.

    The message says what is wrong, and what to do.
    """


class BankError(CodecError):
    """A bank's file that cannot be used: damaged, of another version, in use, or no bank at all.

    The message names the file and what to do.
    """


class BankFull(BankError):
    """No room is left for a reply: nothing of it was kept, and it does not count as received."""
