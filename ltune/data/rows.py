"""What a row is: before the tokenizer (``Text``, ``Chat``) and after it (``Sequence``)."""

from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np

IGNORE = -100  # the label of a token that is not trained


@dataclass(frozen=True)
class Message:
    """One turn's text. ``role`` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Row:
    """One training example. ``place`` says where it came from: "identity.json row 12" or "rows.jsonl:13"."""

    place: str


@dataclass(frozen=True)
class Text(Row):
    """Plain text; all of it is trained."""

    text: str


@dataclass(frozen=True)
class Chat(Row):
    """A conversation: perhaps a system message, then user and assistant in turn."""

    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Sequence:
    """A row in tokens. Both have the same length; ``labels[t]`` is token t or IGNORE, and ``labels[0]`` is always IGNORE."""

    input_ids: Items[int] | np.ndarray
    labels: Items[int] | np.ndarray

    def __len__(self) -> int:
        return len(self.input_ids)
