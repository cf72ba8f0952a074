"""What a row is: before the tokenizer (``Text``, ``Chat``, ``Pair``, ``Rated``) and after it (``Sequence``)."""

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any

import numpy as np

IGNORE = -100  # the label of a token that is not trained


@dataclass(frozen=True)
class ToolCall:
    """A call that the assistant makes: the tool's name, and its arguments as a JSON object."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Message:
    """One turn. ``role`` is system, user, assistant or tool (a tool's result)."""

    role: str
    content: str
    reasoning: str | None = None  # of the assistant, before its answer
    tool_calls: tuple[ToolCall, ...] = ()  # of the assistant, after its content


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
    """A conversation: perhaps a system message, then user (or tool) and assistant in turn."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()  # as JSON schemas: {"name": ..., "description": ..., "parameters": {...}}


@dataclass(frozen=True)
class Pair(Row):
    """Two answers to the same conversation, of which the first is better. ``messages`` end where the assistant is to answer."""

    messages: tuple[Message, ...]
    chosen: Message
    rejected: Message
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Rated(Row):
    """An answer that is good or bad. ``messages`` end where the assistant is to answer."""

    messages: tuple[Message, ...]
    answer: Message
    good: bool
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Sequence:
    """A row in tokens. Both have the same length; ``labels[t]`` is token t or IGNORE, and ``labels[0]`` is always IGNORE."""

    input_ids: Items[int] | np.ndarray
    labels: Items[int] | np.ndarray

    def __len__(self) -> int:
        return len(self.input_ids)
