"""Errors that the codec raises."""


class CodecError(ValueError):
    """An argument the codec cannot accept; names the value and the legal range."""


class OptionError(CodecError):
    """An option whose value is not legal, or that contradicts another.

    Attributes
    ----------
    name : str
        The option, as Python spells it.
    problem : str
        Its value and what is legal.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name} {problem}")
        self.name, self.problem = name, problem

    def under_key(self, key: str) -> "OptionError":
        """Return the same error under the name that the option has elsewhere."""
        return OptionError(key, self.problem)


class PayloadError(CodecError):
    """Bytes that are not a payload: truncated, altered, or of another version."""
