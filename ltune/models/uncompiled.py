"""bitsandbytes, imported without torch's compiler.

Four of its functions, for devices that have none of their own, are compiled where they are defined, which imports all of Inductor: a sixth
of what `ltune fit` does before its first step. Where this is imported before it, they are compiled when they are called. transformers and
PEFT import the package wherever it is installed, so whoever makes a model begins with this.
"""

from collections.abc import Callable
from functools import cache, partial, wraps
from typing import Any

import torch

compiled_at_once: Any = torch.compile


def _compiled_when_called(function: Callable[..., Any] | None = None, **options: Any) -> Callable[..., Any]:
    """As torch.compile is called: with a function, or, as a decorator with options, without."""
    if function is None:
        return partial(_compiled_when_called, **options)
    compiled = cache(lambda: compiled_at_once(function, **options))
    return wraps(function)(lambda *arguments, **named: compiled()(*arguments, **named))


torch.compile = _compiled_when_called  # type: ignore[assignment]
try:
    import bitsandbytes  # noqa: F401
finally:
    torch.compile = compiled_at_once
