"""Parts of a text that are generated, between a start and an end that stay."""


def with_part(text: str, start: str, end: str, part: str) -> str:
    """Return a text with what stands between `start`, once in it, and the next `end` replaced."""
    head, rest = text.split(start)
    return head + start + part + rest[rest.index(end) :]
