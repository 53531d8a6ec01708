# pyarrow.compute makes its functions when it is imported, so a type checker does not see them.
from typing import Any

def __getattr__(name: str) -> Any: ...
