"""What a test asks of several readers: which words something is refused with."""

from collections.abc import Callable

from ltune.errors import UsageError


def said(call: Callable[[], object]) -> str | None:
    """What it refuses, if it does."""
    try:
        call()
    except UsageError as error:
        return str(error)
    return None
