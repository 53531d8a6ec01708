"""Functions that Numba compiles when they are first called."""

from collections.abc import Callable
from functools import cached_property, update_wrapper
from typing import Any


class _Compiled:
    """A function and, from its first call on, Numba's dispatcher of it.

    Settings and most commands import loops that they never call, and the import of Numba takes 0.3 s of CPU.
    """

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        self._options = options
        update_wrapper(self, function)

    @cached_property
    def _dispatcher(self) -> Any:
        from numba import njit

        function = self.__wrapped__  # type: ignore[attr-defined]
        try:
            return njit(**self._options)(function)
        except RuntimeError:  # no folder to keep the machine code in, as in a read-only container
            uncached: dict[str, Any] = self._options | {"cache": False}
            return njit(**uncached)(function)

    def __call__(self, *arguments: Any) -> Any:
        return self._dispatcher(*arguments)

    def __getattr__(self, name: str) -> Any:
        """Answer for the dispatcher; Numba asks for `_numba_type_` where compiled code calls this function."""
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._dispatcher, name)


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator like Numba's; Numba is not imported before a decorated function is called."""
    return lambda function: _Compiled(function, options)
