"""What a row is: before the tokenizer (``Text``, ``Chat``, ``Pair``, ``Rated``, ``Mismatched``, ``Prompt``) and after it (``Sequence``)."""

from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ltune.errors import UsageError

IGNORE = -100  # the label of a token that is not trained


class BadRow(UsageError):
    """One row that cannot be used; those after it can. What is wrong with a whole file or with the settings is a plain UsageError.

    Args:
        place: Of the row, for the message.
        reason: What is wrong, and what to do.
    """

    def __init__(self, place: str, reason: str) -> None:
        # What a file holds must not steer the terminal that shows it
        self.reason = "".join(sign if sign.isprintable() or sign == "\n" else ascii(sign)[1:-1] for sign in reason)
        super().__init__(f"{place}: {self.reason}")
        self.place = place

    def __reduce__(self) -> tuple:
        return type(self), (self.place, self.reason)  # it may have to travel from a tokenising process


class WrongColumns(BadRow):
    """One that lacks a column that its kind must have: often the data set is of another kind than the objective trains on."""

    def for_objective(self, objective: str, rows: "type[Row]") -> BadRow:
        """With the objective that wants such rows."""
        return BadRow(self.place, f"{self.reason}\n{objective} trains on {rows.described}.")


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

    sequences: ClassVar[int] = 1  # that a row of this kind becomes; they are always in the same batch, side by side
    needs_previous: ClassVar[bool] = False  # whether it is made of a row and the one before it
    described: ClassVar[str] = "rows"

    place: str


@dataclass(frozen=True)
class Text(Row):
    """Plain text; all of it is trained."""

    described: ClassVar[str] = "plain text"

    text: str


@dataclass(frozen=True)
class Chat(Row):
    """A conversation: perhaps a system message, then user (or tool) and assistant in turn."""

    described: ClassVar[str] = "conversations"

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()  # as JSON schemas: {"name": ..., "description": ..., "parameters": {...}}


@dataclass(frozen=True)
class Pair(Row):
    """Two answers to the same conversation, of which the first is better. ``messages`` end where the assistant is to answer."""

    sequences: ClassVar[int] = 2
    described: ClassVar[str] = "pairs of answers, a chosen and a rejected one"

    messages: tuple[Message, ...]
    chosen: Message
    rejected: Message
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Rated(Row):
    """An answer that is good or bad. ``messages`` end where the assistant is to answer."""

    described: ClassVar[str] = "answers that are marked as good or bad"

    messages: tuple[Message, ...]
    answer: Message
    good: bool
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Mismatched(Rated):
    """A rated answer, and that of the row before it: an answer to another question, by which KTO estimates a divergence."""

    sequences: ClassVar[int] = 2
    needs_previous: ClassVar[bool] = True

    other: Message = Message("assistant", "")


@dataclass(frozen=True)
class Prompt(Row):
    """What the model in training is to answer itself. ``messages`` end where the assistant is to answer."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    label: str | None = None  # the row's own answer, if it has one
    columns: dict[str, Any] = field(default_factory=dict)  # the record's other columns, for reward functions


@dataclass(frozen=True)
class Sequence:
    """A row, or one of the several that it becomes, in tokens. Both have the same length; ``labels[t]`` is token t or IGNORE, and
    ``labels[0]`` is always IGNORE. An extra is a number of the whole sequence, (), or one for each of its n trained tokens, (n,)."""

    input_ids: Items[int] | np.ndarray
    labels: Items[int] | np.ndarray
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)
    note: bytes = b""  # JSON that stays with it: what a prompt's row says besides (``asked.py``)

    def __len__(self) -> int:
        return len(self.input_ids)
