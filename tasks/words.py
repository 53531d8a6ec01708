"""Words of messages."""


def plural(n: int, noun: str, many: str = "") -> str:
    """Return a count with its noun.

    Args:
        noun: of one.
        many: of several, where that is not the noun and an s.
    """
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {many or noun + 's'}"
