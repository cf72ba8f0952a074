"""The errors that a user can cause, each with its exit code.

The message is the whole answer: what, what was got, what to do; at most 5 lines.
"""


class LtuneError(Exception):
    """Base of all; reaching the user as such would be our bug."""

    exit_code = 1


class UsageError(LtuneError):
    """Bad usage, configuration or data, found before training."""

    exit_code = 2


class DataError(LtuneError):
    """A data fault while training."""

    exit_code = 3


class ResourceError(LtuneError):
    """Out of memory or disk."""

    exit_code = 4


class NonFiniteError(LtuneError):
    """The loss or its gradient is NaN or infinite; the optimizer step was not taken."""

    exit_code = 5
