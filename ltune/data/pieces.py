"""Conversations to pieces in tokens: what the template writes around and for each answer, and the answer, tokenised apart.

Text that a row brings along (content, reasoning, tools and calls of them) never becomes a control token, unless that is allowed.
Most rows spell none, and many are rendered and tokenised at once as they are; then it is checked that the control tokens in the ids are
just those of the same conversation with plain words. Where a row spells some, or the check fails (text and template may spell one
together), it is rendered anew with stand-ins.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from ltune.data.limits import together
from ltune.data.roles import apart
from ltune.data.rows import BadRow, Message, Text, ToolCall
from ltune.data.shield import Shield, texts_in
from ltune.data.templates import Segment, Template
from ltune.data.tokens import Tokens
from ltune.data.truncation import Turn
from ltune.errors import UsageError

ControlTokens = Literal["encode", "error", "allow"]


class Conversation(NamedTuple):
    """What is rendered together."""

    place: str
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    add_generation_prompt: bool = False


@dataclass(slots=True)
class Pieces:
    """A row in tokens, in consecutive pieces."""

    ids: np.ndarray  # (tokens,) int32; where weights depend on them, with roles (roles.py)
    lengths: list[int]  # of the pieces
    trained: list[bool]  # whether a piece is the assistant's

    def without_tail(self) -> "Pieces":
        """Up to the end of the last answer."""
        count = len(self.trained)
        while count and not self.trained[count - 1]:
            count -= 1
        return Pieces(self.ids[: sum(self.lengths[:count])], self.lengths[:count], self.trained[:count])

    def turns(self) -> list[Turn]:
        """(prompt, answer) pairs; what comes after the last answer is none of them. Two marked pieces side by side are one answer."""
        turns: list[Turn] = []
        prompt: list[int] = []
        begin = 0
        for length, trained in zip(self.lengths, self.trained, strict=True):
            ids = self.ids[begin : begin + length].tolist()
            begin += length
            if not trained:
                prompt = prompt + ids
            elif prompt or not turns:
                turns.append((prompt, ids))
                prompt = []
            else:
                turns[-1] = (turns[-1][0], turns[-1][1] + ids)
        return turns

    @classmethod
    def of(cls, turns: list[Turn]) -> "Pieces":
        """The turns, put together again."""
        parts = [part for turn in turns for part in turn]
        return cls(np.array([id for part in parts for id in part], np.int32), list(map(len, parts)), [False, True] * len(turns))


class Asked(NamedTuple):
    """What is to be tokenised, and what is known of it."""

    row: Conversation | Text
    spelled: Counter[str]  # control tokens in its text
    segments: list[Segment] | None  # None: it must be shielded


class PieceMaker:
    """Rows of one template to pieces.

    Args:
        template: None where the rows are plain text.
        tokens: The tokenizer.
        control_tokens: What becomes of control tokens that a row's text spells. encode: plain text; error: the row is refused;
            allow: control tokens.
        roles: Whether each id is to come with its role.
    """

    def __init__(self, template: Template | None, tokens: Tokens, control_tokens: ControlTokens, roles: bool = False) -> None:
        self.template, self.tokens, self.control_tokens, self.roles = template, tokens, control_tokens, roles
        self._scaffold: dict[tuple, bytes | None] = {}  # of a shape of conversation: the control tokens that the template itself writes

    def pieces(self, rows: Sequence[Conversation | Text]) -> list[tuple[Pieces, Counter[str]]]:
        """Each row's pieces, and the control tokens that its text spells.

        Raises:
            BadRow: The template refuses a row.
            UsageError: It spells a control token where that is an error.
        """
        asked = self._ask_all(rows)
        ids, counts = self.tokens.encode([segment.text for _, _, segments in asked for segment in segments or ()])
        ends = np.cumsum([0, *counts])[np.cumsum([0, *(len(segments or ()) for _, _, segments in asked)])]  # in tokens, of each row
        places = np.flatnonzero(self.tokens.is_control[ids])
        bounds = np.searchsorted(places, ends).tolist()
        controls, ends = ids[places], ends.tolist()
        made, first = [], 0
        for number, (row, spelled, segments) in enumerate(asked):
            written = controls[bounds[number] : bounds[number + 1]]
            if segments is None or (self.control_tokens != "allow" and written.tobytes() != self._expected(row)):
                pieces = self.by_stand_ins(row)
            else:
                lengths = counts[first : first + len(segments)]
                pieces = Pieces(ids[ends[number] : ends[number + 1]], lengths, [segment.trained for segment in segments])
                pieces = self._with_roles(row, pieces) if self.roles else pieces
            first += len(segments or ())
            made.append((pieces, spelled))
        return made

    def by_stand_ins(self, row: Conversation | Text) -> Pieces:
        """The row's pieces by way of stand-ins, whatever its text spells."""
        shield = self.shield(row)
        segments = self._segments(shielded(row, shield))
        try:
            ids, lengths = self.tokens.encode_shielded([segment.text for segment in segments], shield, self.roles)
        except UsageError as error:
            raise BadRow(row.place, str(error)) from error
        return Pieces(ids, lengths, [segment.trained for segment in segments])

    def _with_roles(self, row: Conversation | Text, pieces: Pieces) -> Pieces:
        marked = self.by_stand_ins(row)
        if not np.array_equal(apart(marked.ids)[0], pieces.ids):
            raise BadRow(
                row.place,
                "the chat template writes this conversation in another way where its texts are marked, so the roles of its tokens "
                "cannot be told.\nRemove the row, leave out data.weights, or choose another  --data.template",
            )
        return Pieces(marked.ids, pieces.lengths, pieces.trained)

    def shield(self, row: Conversation | Text) -> Shield:
        """Stand-ins that occur neither in the row nor in the template."""
        texts = [*texts_of(row), self.template.source if self.template else ""]
        return self.tokens.shield(texts, allow=self.control_tokens == "allow")

    def render(self, row: Conversation) -> list[Segment]:
        """The conversation's text.

        Raises:
            BadRow: The template refuses it.
        """
        assert self.template is not None, row
        try:
            return self.template.render(row.messages, row.add_generation_prompt, row.tools)
        except UsageError as error:
            raise BadRow(row.place, str(error)) from error

    def _ask_all(self, rows: Sequence[Conversation | Text]) -> list[Asked]:
        try:
            with together():
                return [self._ask(row) for row in rows]
        except MemoryError:  # rows that are huge together
            return [self._ask(row) for row in rows]

    def _ask(self, row: Conversation | Text) -> Asked:
        spelled = self.tokens.found_in(texts_of(row))
        if spelled and self.control_tokens == "error":
            raise UsageError(
                f"{row.place}: its text spells the control token {next(iter(spelled))}, and data.control_tokens is error.\n"
                "Remove it from the row, or choose  --data.control_tokens encode  (plain text) or allow."
            )
        if spelled and self.control_tokens == "encode":
            return Asked(row, spelled, None)
        return Asked(row, spelled, self._segments(row))

    def _segments(self, row: Conversation | Text) -> list[Segment]:
        return [Segment(row.text, True)] if isinstance(row, Text) else self.render(row)

    def _expected(self, row: Conversation | Text) -> bytes | None:
        """The ids of the control tokens that the template writes in a conversation of this shape."""
        if isinstance(row, Text):
            return b""
        shape = (row.add_generation_prompt, len(row.tools), *map(_shape, row.messages))
        if shape not in self._scaffold:
            plain = row._replace(messages=tuple(map(_plain, row.messages)), tools=PLAIN_TOOLS * len(row.tools))
            try:
                ids, _ = self.tokens.encode([segment.text for segment in self.render(plain)])
                self._scaffold[shape] = ids[self.tokens.is_control[ids]].tobytes()
            except UsageError:  # a template may ask more of a tool than this one has
                self._scaffold[shape] = None
        return self._scaffold[shape]


def texts_of(row: Conversation | Text) -> list[str]:
    """All texts that the row brings along."""
    if isinstance(row, Text):
        return [row.text]
    texts = []
    for message in row.messages:
        texts.append(message.content)
        if message.reasoning is not None:
            texts.append(message.reasoning)
        for call in message.tool_calls:
            texts += [call.name, *texts_in(call.arguments)]
    return [*texts, *texts_in(row.tools)] if row.tools else texts


def shielded(row: Conversation | Text, shield: Shield) -> Conversation | Text:
    """The row with stand-ins."""
    return replace(row, text=shield.text(row.text)) if isinstance(row, Text) else shielded_conversation(row, shield)


def shielded_conversation(row: Conversation, shield: Shield, chosen: int | None = None) -> Conversation:
    """The conversation with stand-ins; the message of number ``chosen`` is marked."""
    messages = tuple(shield.message(message, number == chosen) for number, message in enumerate(row.messages))
    return row._replace(messages=messages, tools=tuple(shield.value(tool) for tool in row.tools))


PLAIN_TOOLS = ({"name": "x", "description": "x", "parameters": {"type": "object", "properties": {}}},)


def _shape(message: Message) -> tuple:
    """All of a message that a template may write its own control tokens by."""
    if not message.tool_calls:
        return message.role, bool(message.content), message.reasoning is None
    return message.role, bool(message.content), message.reasoning is None, *(len(call.arguments) for call in message.tool_calls)


def _plain(message: Message) -> Message:
    calls = tuple(ToolCall("x", {f"x{number}": "x" for number in range(len(call.arguments))}) for call in message.tool_calls)
    reasoning = None if message.reasoning is None else "x"
    return replace(message, content="x" if message.content else "", reasoning=reasoning, tool_calls=calls)
