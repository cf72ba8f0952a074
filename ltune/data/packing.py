"""Rows into micro-batches of at most so many tokens: best fit, a pure function of the lengths and the epoch's order.

The order is cut into stretches of about ``STRETCH`` micro-batches' tokens, and each stretch is packed by itself, longest row first, each
row into the fullest micro-batch that it still fits in. So a row moves by less than a stretch from its place in the epoch's order, and the
few micro-batches that stay half empty are one in hundreds. Micro-batches come in the order of their first rows: long ones and short
ones are as mixed as the rows were.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence

import numpy as np

STRETCH = 256  # micro-batches


def pack(lengths: np.ndarray, order: Sequence[int], capacity: int) -> list[tuple[int, ...]]:
    """Every row of ``order`` once, in micro-batches of at most ``capacity`` tokens; a row that is longer stands alone.

    Args:
        lengths: Tokens of each row, (rows,) int64.
        order: Row numbers in the epoch's order, or a part of them.
        capacity: Tokens in a micro-batch.
    """
    if capacity < 1:
        raise ValueError(f"a micro-batch holds at least one token, not {capacity}")
    rows = np.asarray(order, np.int64)  # (n,)
    ordered = np.asarray(lengths, np.int64)[rows]
    micro_batches: list[tuple[int, ...]] = []
    for begin, end in _stretches(ordered, capacity):
        numbers = _best_fit(ordered[begin:end], capacity)
        micro_batches += _gather(rows[begin:end], numbers)
    return micro_batches


def _stretches(lengths: np.ndarray, capacity: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of consecutive rows that together have about ``STRETCH * capacity`` tokens."""
    reached = np.cumsum(lengths)
    begin = 0
    while begin < len(lengths):
        before = reached[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(reached, before + STRETCH * capacity, side="right")))
        yield begin, end
        begin = end


def _best_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """The number of each row's micro-batch, (rows,). The longest row is placed first; of equal ones, the one that comes first."""
    longest_first = np.argsort(-lengths, kind="stable")
    width = len(lengths).bit_length()
    opened = 0
    spaces: list[int] = []  # of the micro-batches that are not full, sorted: tokens free << width | number
    chosen: list[int] = []
    for length in lengths[longest_first].tolist():
        place = bisect_left(spaces, length << width)
        if place < len(spaces):
            free, number = divmod(spaces.pop(place), 1 << width)
        else:
            free, number = capacity, opened
            opened += 1
        chosen.append(number)
        if free > length:
            insort(spaces, (free - length) << width | number)
    numbers = np.empty(len(lengths), np.int64)
    numbers[longest_first] = chosen
    return numbers


def _gather(rows: np.ndarray, numbers: np.ndarray) -> list[tuple[int, ...]]:
    """The rows of each micro-batch, in order; the micro-batches in the order of their first rows."""
    positions = np.argsort(numbers, kind="stable")  # micro-batch by micro-batch, in each as in the order
    begins = np.flatnonzero(np.diff(numbers[positions], prepend=-1))
    ends = np.append(begins[1:], len(rows))
    gathered = rows[positions].tolist()
    by_first = np.argsort(positions[begins])
    return [tuple(gathered[begin:end]) for begin, end in zip(begins[by_first].tolist(), ends[by_first].tolist(), strict=True)]
