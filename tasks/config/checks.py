"""A check that several settings classes share."""


def require(condition: bool, message: str) -> None:
    """Raise a ValueError with this message where the condition does not hold."""
    if not condition:
        raise ValueError(message)
