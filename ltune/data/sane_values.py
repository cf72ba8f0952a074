"""What a template writes is of a sane size: a list in a list in a list, each there twice, takes little and prints without end, in one step
that no alarm interrupts."""

from collections.abc import Callable
from functools import wraps
from typing import Any

PARTS = 1_000_000  # of what a list or a dictionary, and those in it, print
# Filters that make a text of whatever they are given
WRITING = (
    "string", "escape", "e", "forceescape", "safe", "pprint", "format", "join", "replace", "upper", "lower", "capitalize", "title", "trim",
    "center", "indent", "truncate", "wordcount", "wordwrap", "striptags", "urlize", "urlencode", "xmlattr",
)  # fmt: skip


class TooMuch(Exception):
    """The template took too long, or too much memory, or wrote too much."""


def sane(value: Any) -> Any:
    """The value.

    Raises:
        TooMuch: It prints as far more than it takes.
    """
    if not isinstance(value, (list, tuple, dict)):
        return value
    waiting, count = [value], 0
    while waiting:
        inner = waiting.pop()
        parts = list(inner.values()) if isinstance(inner, dict) else inner
        count += len(parts)
        if count > PARTS:
            raise TooMuch("it writes a huge list")
        waiting += [part for part in parts if isinstance(part, (list, tuple, dict))]
    return value


def sane_arguments(work: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, which refuses what is not sane."""

    @wraps(work)
    def guarded(*arguments: Any, **named: Any) -> Any:
        for value in (*arguments, *named.values()):
            sane(value)
        return work(*arguments, **named)

    return guarded
