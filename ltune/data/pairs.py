"""Answers to the same conversation: what stands before the last answer is the prompt, and only that answer is trained."""

from dataclasses import dataclass, replace

import numpy as np

from ltune.data import truncation as cut
from ltune.data.pieces import Pieces
from ltune.data.rows import Mismatched, Pair, Rated, Row


@dataclass(frozen=True)
class Answer:
    """An answer with its prompt, in tokens."""

    prompt: np.ndarray
    answer: np.ndarray
    tail: np.ndarray  # what the template writes after it

    @classmethod
    def of(cls, pieces: Pieces) -> "Answer | None":
        """The last answer of a conversation; None if there is none."""
        body = pieces.without_tail()
        count = len(body.trained)
        while count and body.trained[count - 1]:
            count -= 1
        begin, end = sum(body.lengths[:count]), len(body.ids)
        return cls(pieces.ids[:begin], pieces.ids[begin:end], pieces.ids[end:]) if end > begin > 0 else None

    def pieces(self) -> Pieces:
        """Put together again."""
        parts = [self.prompt, self.answer, self.tail]
        return Pieces(np.concatenate(parts), list(map(len, parts)), [False, True, False])


def whole(answers: list[Answer], max_length: int) -> list[Answer] | None:
    """The answers as they are, without tails if only so they fit; None if one is too long."""
    if max(len(one.prompt) + len(one.answer) for one in answers) > max_length:
        return None
    if max(len(one.prompt) + len(one.answer) + len(one.tail) for one in answers) > max_length:
        return [replace(one, tail=one.tail[:0]) for one in answers]
    return answers


def llamafactory(answers: list[Answer], max_length: int) -> list[Answer]:
    """LLaMA-Factory's: prompt and answer share the budget, all cut as the longest answer needs it."""
    longest = max(len(one.answer) for one in answers)
    shares = cut.share(len(answers[0].prompt), longest, max_length)
    return [Answer(one.prompt[: shares[0]], one.answer[: shares[1]], one.tail[:0]) for one in answers]


def with_prompt(answers: list[Answer], prompt: np.ndarray) -> list[Answer]:
    """The answers after another prompt, as it was shortened for the longest of them."""
    return [Answer(prompt, one.answer, one.tail[:0]) for one in answers]


def completions(row: Pair | Rated) -> list[tuple]:
    """The messages with each answer: the chosen one's first, the mismatched one's last."""
    if isinstance(row, Pair):
        answers = [row.chosen, row.rejected]
    else:
        answers = [row.answer, row.other] if isinstance(row, Mismatched) else [row.answer]
    return [(*row.messages, answer) for answer in answers]


def mismatched(row: Row, other: Row) -> Mismatched:
    """A rated row with the answer of another one, as KTO's estimate of the divergence needs it."""
    assert isinstance(row, Rated), row
    assert isinstance(other, Rated), other
    return Mismatched(row.place, row.messages, row.answer, row.good, row.tools, other.answer)
