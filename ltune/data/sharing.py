"""What of a flat batch has to be computed: what sequences begin with in common only once, and nothing that no trained token sees.

A token sees only what stands before it. So equal beginnings come to equal states, whichever sequence they stand in, and what follows the
token before a sequence's last trained one comes to nothing. Sequences side by side that begin alike - a template's first tokens, a system
text, the prompt of two answers - become rows of their own: first the beginning, which trains nothing and is lent, then the rest of each
sequence, which sees the lent tokens as if they stood before it. Losses and gradients are the same to rounding. In training, rows of a
micro-batch are put side by side by how they begin (``Step.batches``).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

WORTH = 0.01  # of a batch's tokens: what has to be saved before anything is lent, which costs attention a little
# Among long rows it costs more, since a row that borrows nothing has quicker attention
LONG = 4096  # tokens of the row that the mean token stands in, from which that is so
SLOWER = 1.6  # times as long, where something is lent (a layer of 8 billion weights on an H200; 1.3 where cuDNN is the quicker one)
TOKEN = 12_000  # pairs of tokens, one of which sees the other, whose attention takes as long as a token's products (that layer)

Group = tuple[int, int, int]  # sequences from the first to before the second, and how many tokens they share


@dataclass
class Compact:
    """A flat batch as it is computed: C tokens in R rows."""

    input_ids: Any  # (C,)
    position_ids: Any  # (C,): in the sequence
    places: Any  # (4, R + 1) int32; see ``Places``
    predict_at: Any  # (N,): where the tokens before the trained ones stand here
    longest: int  # tokens of the longest sequence, lent ones included
    lengths: tuple[int, ...]  # of each row, its own tokens
    loans: tuple[tuple[int, int, int], ...]  # of each row that is lent: where it begins, where it ends and its borrowers begin, their end
    borrowed: int  # lent tokens, each as often as somebody sees it


def compact(input_ids: np.ndarray, position_ids: np.ndarray, starts: np.ndarray, predict_at: np.ndarray) -> Compact | None:
    """The batch without what need not be computed; None where that is nothing.

    Args:
        input_ids: (T,): sequences end to end.
        position_ids: (T,): restarting with each.
        starts: (S + 1,): where each begins, and T.
        predict_at: (N,): the tokens before trained ones, the only ones whose states are read; increasing.
    """
    if not len(predict_at):
        return None
    border = np.searchsorted(predict_at, starts)
    reads = border[1:] > border[:-1]
    begins = starts[:-1]
    first = np.where(reads, predict_at[np.minimum(border[:-1], len(predict_at) - 1)] - begins, 0)  # read tokens are not lent
    needed = np.where(reads, predict_at[border[1:] - 1] - begins + 1, 0)
    groups = _groups(input_ids, begins, first)
    shared = np.zeros(len(begins), np.int64)  # of each sequence, tokens that stand in its group's first
    for begin, end, count in groups:
        shared[begin + 1 : end] = count
    if not _pays(needed, shared, groups):
        groups, shared = [(number, number + 1, 0) for number in range(len(begins))], np.zeros_like(shared)
    lengths = np.diff(starts)
    kept = (position_ids >= np.repeat(shared, lengths)) & (position_ids < np.repeat(needed, lengths))
    if kept.all():
        return None
    at = np.cumsum(kept)[predict_at] - 1
    places, loans = _places(groups, needed)
    own = tuple(np.diff(places[0]).tolist())
    return Compact(input_ids[kept], position_ids[kept], places, at, int(needed.max()), own, loans, int(places[2, -1]))


def _pays(needed: np.ndarray, shared: np.ndarray, groups: list[Group]) -> bool:
    """Whether lending makes the batch quicker."""
    tokens, saved = needed.sum(), shared.sum()
    apart = (needed.astype(float) ** 2).sum() / 2  # pairs of tokens of which one sees the other
    if 2 * apart < LONG * tokens:
        return bool(saved >= WORTH * tokens)
    own = needed.astype(float)
    lent = 0.0
    for begin, end, count in groups:
        own[begin:end] -= count
        lent += count**2 / 2 * (count > 0) + own[begin:end].sum() * count
    together = lent + (own**2).sum() / 2
    return bool(saved * TOKEN > SLOWER * together - apart)


def _places(groups: list[Group], needed: np.ndarray) -> tuple[np.ndarray, tuple[tuple[int, int, int], ...]]:
    """(4, R + 1) int32, of each row: where it begins (and at the end C); where the row that it borrows from begins; how many tokens are
    borrowed before it (and at the end, by all); and, of the first that borrows from a row, how many do. And ``Compact.loans``."""
    rows: list[tuple[int, int, int, int]] = []
    loans: list[tuple[int, int, int]] = []
    place = borrowed = 0
    for begin, end, count in groups:
        lender = place
        if count:
            rows.append((place, 0, borrowed, 0))
            place += count
        for number in range(begin, end):
            rows.append((place, lender if count else 0, borrowed, end - begin if count and number == begin else 0))
            place += int(needed[number]) - count
            borrowed += count
        if count:
            loans.append((lender, lender + count, place))
    rows.append((place, 0, borrowed, 0))
    return np.array(rows, np.int32).T.copy(), tuple(loans)


def _groups(input_ids: np.ndarray, begins: np.ndarray, most: np.ndarray) -> list[Group]:
    """Which neighbours share how much, so that most is saved; ``most`` (S,) is what each has to lend."""
    common = np.zeros(max(0, len(begins) - 1), np.int64)  # of each sequence and the next
    for number, (one, other, limit) in enumerate(zip(begins, begins[1:], np.minimum(most[:-1], most[1:]), strict=False)):
        differ = input_ids[one : one + limit] != input_ids[other : other + limit]
        common[number] = differ.argmax() if differ.any() else limit
    return _best(common, 0, len(begins))[1]


def _best(common: np.ndarray, begin: int, end: int) -> tuple[int, list[Group]]:
    """Tokens saved among these sequences, and how: what all have in common, or more among fewer of them."""
    if end - begin == 1:
        return 0, [(begin, end, 0)]
    between = common[begin : end - 1]
    least = int(between.min())
    borders = [begin, *(begin + 1 + np.flatnonzero(between == least)).tolist(), end]
    parts = [_best(common, one, other) for one, other in zip(borders, borders[1:], strict=False)]
    saved = sum(part[0] for part in parts)
    if (end - begin - 1) * least > saved:
        return (end - begin - 1) * least, [(begin, end, least)]
    return saved, [group for part in parts for group in part[1]]
