"""Work that cannot be trusted takes no longer than a second, and no more than a GiB of memory. It refuses to know what the work is.

Only the main thread can be interrupted; in others nothing is limited.
"""

import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from types import FrameType
from typing import TypeVar

from ltune.data.sane_values import TooMuch

SECONDS = 1.0  # of processor time, for one piece of work: other programs' work is not held against it
TICK = 0.1
MEMORY = 1 << 30  # bytes that it may take
FRESH = 0.1  # seconds that the process's size is believed to stay what it is

Result = TypeVar("Result")


class _Alarm(BaseException):
    """Not an Exception: nothing in a template may catch it."""


class _Watch:
    """What there is one of in a process: the timer, and the limit of the process's memory."""

    on = False
    ticks: int | None = None  # since the piece of work began; None: none goes on


def limited(work: Callable[[], Result]) -> Result:
    """What ``work`` returns, unless it takes too long or too much memory.

    Raises:
        TooMuch: It does.
        MemoryError: Within ``together``, all of it takes too much, and it is not known which; ask for each apart.
    """
    if not _can_limit():
        return work()
    if _Watch.on:
        return _in_time(work)
    try:
        try:
            with together():
                return _in_time(work)
        except MemoryError:
            before = _room()
        # The process may have grown by itself since it was last measured
        _measured.cache_clear()
        if _room() <= before:
            raise MemoryError
        with together():
            return _in_time(work)
    except MemoryError:
        raise TooMuch(f"it takes more than {MEMORY >> 30} GiB of memory") from None


@contextmanager
def together() -> Iterator[None]:
    """Sets the limits once for what is ``limited`` in here: the five calls of the system take as long as a small template."""
    if _Watch.on or not _can_limit():
        yield
        return
    _hear()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    ceiling = min((limit for limit in (soft, hard, _room()) if limit != resource.RLIM_INFINITY), default=resource.RLIM_INFINITY)
    _Watch.on = True
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, TICK, TICK)
        resource.setrlimit(resource.RLIMIT_AS, (ceiling, hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        _Watch.on = False


def _in_time(work: Callable[[], Result]) -> Result:
    _Watch.ticks = 0
    try:
        return work()
    except _Alarm:
        raise TooMuch(f"it is not done after {SECONDS:g} s") from None
    finally:
        _Watch.ticks = None


def _can_limit() -> bool:
    return threading.get_ident() == threading.main_thread().ident


@cache
def _hear() -> None:
    signal.signal(signal.SIGVTALRM, _ring)


def _ring(signum: int, frame: FrameType | None) -> None:
    """Again and again after the time is over, should an alarm be lost."""
    if _Watch.ticks is not None:
        _Watch.ticks += 1
        if _Watch.ticks * TICK >= SECONDS:
            raise _Alarm


def _room() -> int:
    """Bytes of address space that this process may come to while it works; as it was measured not long ago.

    A stale figure would be worse than none: below what the process has taken by now, even its stack could not grow.
    """
    return _measured(int(time.monotonic() / FRESH))


@lru_cache(maxsize=1)
def _measured(moment: int) -> int:
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE") + MEMORY
    except FileNotFoundError:  # not Linux
        return resource.RLIM_INFINITY
