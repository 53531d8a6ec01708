"""How many examples hypothesis tries: a quarter of the full budget in `make test`, all of it in `make nightly`."""

from typing import Any

from hypothesis import settings

LEAST = 10  # examples in any run


def examples(n: int, **more: Any) -> settings:
    """Return hypothesis settings with a full budget of `n` examples."""
    if settings.get_current_profile_name() != "nightly":
        n = min(n, max(n // 4, LEAST))
    return settings(max_examples=n, **more)
