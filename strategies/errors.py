"""Errors that end a run."""


class RunFailed(RuntimeError):
    """A run that cannot learn anything; the message says why, in the clients' own words."""
