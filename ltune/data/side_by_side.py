"""The same function of many things, in order, by this process and others like it; without an import or a start that takes time."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

MOST = 4  # processes; more would wait for the disk


def in_order(function: Callable[[T], R], things: Sequence[T]) -> Generator[R, None, None]:
    """function(thing) of each, in order. This process does its share; it is to be closed, where not all results are asked for."""
    turns = min(_processes(), max(1, len(things) // 4))
    helpers = []
    try:
        for turn in range(1, turns):
            fork = multiprocessing.get_context("fork")
            receive, send = fork.Pipe(duplex=False)
            helper = fork.Process(target=_help, args=(receive, send, function, things[turn::turns]), daemon=True)
            helper.start()
            send.close()
            helpers.append((helper, receive))
        for number, thing in enumerate(things):
            turn = number % turns
            yield _received(helpers[turn - 1][1], function, thing) if turn else function(thing)
    finally:
        for helper, receive in helpers:
            helper.kill()
            helper.join()
            receive.close()


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _processes() -> int:
    """One where torch is loaded, whose threads a forked process would miss, and where forking is not safe or not there: beside Linux."""
    return 1 if "torch" in sys.modules or sys.platform != "linux" else min(MOST, cores())


def _received(receive: Connection, function: Callable[[T], R], thing: T) -> R:
    try:
        return receive.recv()
    except EOFError:  # the helper died, perhaps for lack of memory
        return function(thing)


def _help(receive: Connection, send: Connection, function: Callable[[T], R], things: Sequence[T]) -> None:
    receive.close()  # so that sending fails once nobody is left to receive
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who is asked to stop is the process that began this
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with suppress(OSError):
        for thing in things:
            send.send(function(thing))
