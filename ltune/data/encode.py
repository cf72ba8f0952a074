"""A row to tokens and labels.

Every piece of a rendered conversation (prompt, answer, prompt ...) is tokenised apart. Text in a row never becomes a control token:
a row that spells one is rendered with a stand-in for it.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ltune.data import truncation as cut
from ltune.data.rows import IGNORE, Chat, Message, Row, Sequence, Text
from ltune.data.templates import Segment, Template
from ltune.data.tokens import Tokens
from ltune.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Piece = tuple[list[int], bool]  # ids; trained


@dataclass(frozen=True)
class Dropped:
    """A row that cannot be trained on, and why."""

    reason: str


@dataclass(frozen=True)
class Encoded:
    """A row in tokens: one sequence, or several where a long text was divided."""

    sequences: list[Sequence]
    truncated: bool  # something was cut off
    control_tokens: bool  # its text spells control tokens


class Encoder:
    """Rows to sequences, by one template, masking and truncation.

    Args:
        template: For conversations; None where the rows are plain text.
        tokenizer: The model's.
        max_length: Longest sequence in tokens.
        truncation: left, drop or llamafactory; see truncation.py.
        train_on: assistant: every answer with its end token; last: the last one; all: prompts too.
        system: System text for conversations without one; None: the template's default.
    """

    def __init__(
        self,
        template: Template | None,
        tokenizer: "PreTrainedTokenizerBase",
        max_length: int,
        truncation: cut.Policy = "left",
        train_on: Literal["assistant", "last", "all"] = "assistant",
        system: str | None = None,
    ) -> None:
        if max_length < 2:
            raise UsageError(f"data.max_length: {max_length} leaves nothing to train on; it must be 2 or more.")
        self.template, self.max_length, self.truncation, self.train_on, self.system = template, max_length, truncation, train_on, system
        self.tokens = Tokens(tokenizer)
        self._scaffold: dict[tuple, list[str]] = {}  # of a sequence of roles: the control tokens that the template itself writes

    def settings(self) -> dict[str, Any]:
        """All that the ids depend on, besides the rows."""
        tokens = self.tokens
        known = {name: value for name, value in vars(self).items() if name in ("max_length", "truncation", "train_on", "system")}
        template = (self.template.source, self.template.tokens) if self.template else None
        return known | {"template": template, "tokenizer": tokens.json, "ends": (tokens.bos_id, tokens.eos_id, tokens.adds_bos)}

    def encode(self, row: Row) -> list[Sequence] | Dropped:
        """One sequence; several for a text longer than ``max_length``.

        Raises:
            UsageError: The template refuses the row.
        """
        encoded = self.process(row)
        return encoded if isinstance(encoded, Dropped) else encoded.sequences

    def process(self, row: Row) -> Encoded | Dropped:
        """The same as ``encode`` with what is to be reported."""
        try:
            if isinstance(row, Text):
                return self._text(row)
            assert isinstance(row, Chat), row
            return self._chat(row)
        except UsageError as error:
            raise UsageError(f"{row.place}: {error}") from error

    def prompt(self, row: Chat) -> tuple[list[int], str | None]:
        """Ids up to where the last answer begins, never cut, and that answer's text; None where the conversation ends with the user."""
        *before, last = row.messages
        asked, label = (before, last.content) if last.role == "assistant" else ([*before, last], None)
        try:
            pieces, _ = self._pieces(self._with_system(tuple(asked)), add_generation_prompt=True)
        except UsageError as error:
            raise UsageError(f"{row.place}: {error}") from error
        return [id for ids, _ in pieces for id in ids], label

    # -- steps --------------------------------------------------------------------------------------------------------------------

    def _chat(self, row: Chat) -> Encoded | Dropped:
        pieces, spelled = self._pieces(self._with_system(row.messages))
        turns, tail = _turns(pieces)
        if not turns:
            return Dropped("no trained token")
        if (kept := self._fit(turns)) is None:
            return Dropped(
                f"longer than {self.max_length} tokens"
                if self.truncation == "drop"
                else f"the answer does not fit in {self.max_length} tokens"
            )
        truncated = cut.length(kept) < cut.length(turns)
        if truncated or cut.length(kept) + len(tail) > self.max_length:
            tail = []
        sequence = self._label(kept, tail)
        if all(label == IGNORE for label in sequence.labels):
            return Dropped("no trained token")
        return Encoded([sequence], truncated, spelled)

    def _with_system(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        if not self.system or (messages and messages[0].role == "system"):
            return messages
        return (Message("system", self.system), *messages)

    def _pieces(self, messages: tuple[Message, ...], add_generation_prompt: bool = False) -> tuple[list[Piece], bool]:
        """Ids of the rendered conversation's segments, and whether its text spells control tokens."""
        assert self.template is not None
        segments = self.template.render(messages, add_generation_prompt)
        if self._as_written(segments, messages, add_generation_prompt):
            ids = self.tokens.encode([segment.text for segment in segments])
            return [(piece, segment.trained) for piece, segment in zip(ids, segments, strict=True)], False
        contents = [message.content for message in messages]
        start = self.tokens.free_range([*contents, self.template.source])
        shielded = [replace(message, content=self.tokens.shield(message.content, start)) for message in messages]
        segments = self.template.render(shielded, add_generation_prompt)
        pieces = [(self.tokens.encode_shielded(segment.text, start), segment.trained) for segment in segments]
        return pieces, any(self.tokens.spelled.search(content) for content in contents)

    def _as_written(self, segments: list[Segment], messages: tuple[Message, ...], add_generation_prompt: bool) -> bool:
        """Whether the control tokens in the rendered text are those that the template writes around any text."""
        assert self.template is not None
        key = (*(message.role for message in messages), add_generation_prompt)
        if key not in self._scaffold:
            plain = self.template.render([Message(message.role, "x") for message in messages], add_generation_prompt)
            self._scaffold[key] = self.tokens.spelled.findall("".join(segment.text for segment in plain))
        return self.tokens.spelled.findall("".join(segment.text for segment in segments)) == self._scaffold[key]

    def _fit(self, turns: list[cut.Turn]) -> list[cut.Turn] | None:
        if self.truncation == "llamafactory":
            return cut.llamafactory(turns, self.max_length, last_first=self.train_on == "last")
        if self.truncation == "drop":
            return turns if cut.length(turns) <= self.max_length else None
        return cut.left(turns, self.max_length, self.tokens.bos_id)

    def _label(self, turns: list[cut.Turn], tail: list[int]) -> Sequence:
        input_ids: list[int] = []
        labels: list[int] = []
        for number, (prompt, answer) in enumerate(turns, 1):
            trained = self.train_on != "last" or number == len(turns)
            input_ids += prompt + answer
            labels += prompt if self.train_on == "all" else [IGNORE] * len(prompt)
            labels += answer if trained else [IGNORE] * len(answer)
        labels += tail if self.train_on == "all" else [IGNORE] * len(tail)
        return _sequence(input_ids + tail, labels)

    def _text(self, row: Text) -> Encoded | Dropped:
        tokens = self.tokens
        if spelled := tokens.spelled.search(row.text) is not None:
            start = tokens.free_range([row.text])
            ids = tokens.encode_shielded(tokens.shield(row.text, start), start)
        else:
            (ids,) = tokens.encode([row.text])
        ids = ([tokens.bos_id] if tokens.adds_bos and tokens.bos_id is not None else []) + ids + [tokens.eos_id]
        blocks = [ids[begin : begin + self.max_length] for begin in range(0, len(ids), self.max_length)]
        sequences = [_sequence(block, list(block)) for block in blocks if len(block) > 1]  # a single token has none before it
        return Encoded(sequences, False, spelled) if sequences else Dropped("no trained token")


def _sequence(input_ids: list[int], labels: list[int]) -> Sequence:
    return Sequence(input_ids, [IGNORE, *labels[1:]])


def _turns(pieces: list[Piece]) -> tuple[list[cut.Turn], list[int]]:
    """(prompt, answer) pairs, and what the template writes after the last answer."""
    turns: list[cut.Turn] = []
    prompt: list[int] = []
    for ids, trained in pieces:
        if not trained:
            prompt = prompt + ids
        elif prompt or not turns:
            turns.append((prompt, ids))
            prompt = []
        else:  # two marked stretches side by side are one answer
            turns[-1] = (turns[-1][0], turns[-1][1] + ids)
    return turns, prompt
