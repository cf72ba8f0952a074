"""Prompts to tokens: one that is too long is shortened, and what its row says besides goes with it as JSON."""

import json
from typing import Any

import numpy as np

from ltune.data import truncation as cut
from ltune.data.pairs import Answer
from ltune.data.pieces import Conversation, PieceMaker
from ltune.data.rounds import Shortener
from ltune.data.rows import Message, Prompt

ANSWER = Message("assistant", "x")  # any: the prompt is what stands before it


def cut_left(asked: Conversation, ids: np.ndarray, max_length: int, maker: PieceMaker, label: str | None) -> np.ndarray:
    """Oldest rounds go first, then the beginning of the last user's text; the system text and the assistant's header stay.

    Args:
        asked: The conversation.
        ids: (tokens,) int32: all of it.
        max_length: Tokens allowed.
        maker: Of pieces.
        label: The row's answer; it takes no room.
    """
    answered = asked._replace(messages=(*asked.messages, ANSWER), add_generation_prompt=False)
    ((pieces, _),) = maker.pieces([answered])
    whole = Answer.of(pieces)
    if whole is not None and np.array_equal(whole.prompt, ids):
        left = Shortener(maker, max_length + len(whole.answer)).left(answered, len(pieces.ids))
        shorter = Answer.of(left) if left is not None else None
        if shorter is not None:
            return shorter.prompt
    # A template that asks for an answer in other words than it writes before one: its beginning goes, whatever it is
    begin = ids[:1] if ids[0] == maker.tokens.bos_id else ids[:0]
    return np.concatenate([begin, ids[len(ids) - max_length + len(begin) :]])


def cut_right(asked: Conversation, ids: np.ndarray, max_length: int, maker: PieceMaker, label: str | None) -> np.ndarray:
    """LLaMA-Factory's: prompt and label share the budget, the prompt's end is cut off, header and all."""
    answer = len(maker.tokens.encode([label])[0]) + 1 if label else 1  # and its end token
    return ids[: cut.share(len(ids), answer, max_length)[0]]


def note_of(row: Prompt) -> bytes:
    """Place, messages, label and other columns."""
    messages = [{"role": message.role, "content": message.content} for message in row.messages]
    note = {"place": row.place, "messages": messages, "label": row.label, "columns": row.columns}
    return json.dumps(note, ensure_ascii=False, default=_plain).encode()


def _plain(value: Any) -> Any:
    """What a parquet file has and JSON has not: arrays as lists, all else (times, bytes) as text."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)
