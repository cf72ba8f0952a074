"""A row to tokens and labels.

Every piece of a rendered conversation (prompt, answer, prompt ...) is tokenised apart. Text in a row never becomes a control token:
a row that spells one is rendered with a stand-in for it, and tokenised by a copy of the tokenizer that knows stand-ins only.
"""

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ltune.data import truncation as cut
from ltune.data.rows import IGNORE, Chat, Message, Row, Sequence, Text
from ltune.data.templates import Segment, Template
from ltune.errors import UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

Piece = tuple[list[int], bool]  # ids; trained
PRIVATE_USE = (0xF0000, 0x10FFFD)  # characters that no text means anything by


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


class Tokens:
    """Text to ids, with and without control tokens. Can be sent to another process.

    Args:
        tokenizer: Must be a fast one.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        from tokenizers import Tokenizer

        if not tokenizer.is_fast:
            raise UsageError(f"{type(tokenizer).__name__} is a slow tokenizer; ltune needs one with a tokenizer.json.")
        self.direct = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self.direct.no_padding()  # left behind by earlier calls of the tokenizer
        self.direct.no_truncation()
        self.json: str = self.direct.to_str()
        # Runs of white space are added tokens too in some tokenizers; those control nothing
        added = {token.content: id for id, token in tokenizer.added_tokens_decoder.items()}
        self.control = {content: id for content, id in added.items() if content and not content.isspace()}
        self.numbers = {content: number for number, content in enumerate(self.control)}
        self.spelled = re.compile("|".join(map(re.escape, sorted(self.control, key=len, reverse=True))) or r"(?!)")
        self.forbidden = set(self.control.values()) - {tokenizer.unk_token_id}
        self.eos_id: int = tokenizer.eos_token_id
        self.bos_id: int | None = tokenizer.bos_token_id
        self.adds_bos = self.bos_id is not None and tokenizer("a")["input_ids"][:1] == [self.bos_id]
        self._blind: dict[int, Tokenizer] = {}

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text; control tokens in it count as such."""
        return [self.direct.encode(text, add_special_tokens=False).ids for text in texts]

    def free_range(self, texts: list[str]) -> int:
        """First of as many private characters as stand-ins are needed, none of which occurs in the texts."""
        needed = len(self.control) + 1
        used = {ord(character) for text in texts if not text.isascii() for character in text}
        starts = range(PRIVATE_USE[0], PRIVATE_USE[1] - needed, needed)
        return next(start for start in starts if used.isdisjoint(range(start, start + needed)))

    def shield(self, text: str, start: int) -> str:
        """The text with a stand-in for every control token it spells, and a mark at either end against joining with what stands beside it.

        The marks stand inside of the outer white space, so that a template can strip it.
        """
        stripped = text.strip()
        if not stripped:
            return text
        mark = chr(start + len(self.control))
        shielded = mark + self.spelled.sub(lambda match: chr(start + self.numbers[match.group()]), stripped) + mark
        before = text[: len(text) - len(text.lstrip())]
        return before + shielded + text[len(before) + len(stripped) :]

    def encode_shielded(self, text: str, start: int) -> list[int]:
        """Ids of a rendered text whose contents are shielded: control tokens in it are the template's, stand-ins are text."""
        names = list(self.control)
        swapped: list[str] = []
        controls: dict[int, int] = {}  # where a stand-in for a true control token stands, to its id
        length = 0
        either = re.compile(f"({self.spelled.pattern})|([{chr(start)}-{chr(start + len(names))}])")
        position = 0
        for match in either.finditer(text):
            piece = text[position : match.start()]
            length += len(piece)
            if match.group(1) is not None:
                controls[length] = self.control[match.group(1)]
                replacement = chr(start + self.numbers[match.group(1)])
            else:
                number = ord(match.group(2)) - start
                replacement = names[number] if number < len(names) else ""
            swapped += [piece, replacement]
            length += len(replacement)
            position = match.end()
        swapped.append(text[position:])
        encoding = self._blind_tokenizer(start).encode("".join(swapped), add_special_tokens=False)
        ids = []
        for id, (begin, end) in zip(encoding.ids, encoding.offsets, strict=True):
            found = next((controls[place] for place in range(begin, end) if place in controls), None)
            if found is None and id in self.forbidden:
                raise UsageError("this tokenizer makes a control token of ordinary text; remove the text from the row.")
            ids.append(id if found is None else found)
        return ids

    def _blind_tokenizer(self, start: int) -> "Tokenizer":
        """A copy that knows control tokens by private characters only."""
        if start not in self._blind:
            from tokenizers import AddedToken, Tokenizer

            content = json.loads(self.json)
            added = {token["content"]: token for token in content["added_tokens"]}
            content |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
            if content["model"]["type"] == "Unigram":  # its best path could run through the piece "</s>"
                content["model"]["vocab"] = [[piece, -1e6 if piece in added else score] for piece, score in content["model"]["vocab"]]
            blind = Tokenizer.from_str(json.dumps(content))
            signs = []
            for name, number in self.numbers.items():
                strips = {side: added.get(name, {}).get(side, False) for side in ("lstrip", "rstrip")}
                signs.append(AddedToken(chr(start + number), normalized=False, **strips))
            blind.add_tokens(signs)
            self._blind[start] = blind
        return self._blind[start]


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
