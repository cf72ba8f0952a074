"""Rows to tokens and labels: the top of what pieces.py (text to ids), rounds.py, truncation.py (rows too long) and pairs.py do."""

import gc
from collections import Counter
from collections.abc import Iterator
from collections.abc import Sequence as Items
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from ltune.data import asked as questions
from ltune.data import pairs
from ltune.data import truncation as cut
from ltune.data.labels import TrainOn, label, sequence_of
from ltune.data.pieces import ControlTokens, Conversation, PieceMaker, Pieces
from ltune.data.roles import weight_table
from ltune.data.rounds import Shortener, fitting
from ltune.data.rows import IGNORE, Chat, Message, Pair, Prompt, Rated, Row, Sequence, Text
from ltune.data.templates import Template
from ltune.data.tokens import Tokens
from ltune.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Made = list[tuple[Pieces, Counter[str]]]


@dataclass(frozen=True)
class Dropped:
    """A row that cannot be trained on, and why."""

    reason: str


@dataclass(frozen=True)
class Encoded:
    """A row in tokens: one sequence; two of a pair (the chosen answer first); several where a long row was divided."""

    sequences: list[Sequence]
    truncated: bool  # something was cut off
    control_tokens: dict[str, int] = field(default_factory=dict)  # that its text spells, and how often
    empty_answer: bool = False  # an answer that is trained has no text: only its end token is learned
    end_token_cut: int = 0  # trained answers that lost their end token; only llamafactory does that
    split: bool = False  # a long conversation that became several rows
    equal_answers: bool = False  # a pair's, after what was cut


class Encoder:
    """Rows to sequences, by one template, masking and truncation.

    Args:
        template: For conversations; None where the rows are plain text.
        tokenizer: The model's.
        max_length: Longest sequence in tokens.
        truncation: left, drop, error, split or llamafactory; see rounds.py and truncation.py.
        train_on: assistant: every answer with its end token; last: the last one; all: prompts too. Of pairs and rated rows it is
            always the last one.
        system: System text for conversations without one; None: the template's default.
        control_tokens: What becomes of control tokens that a row's text spells. encode: plain text; error: the row is refused;
            allow: control tokens.
        weights: What a trained token of a conversation weighs in the loss, by role (roles.py); None: all the same.
    """

    def __init__(
        self,
        template: Template | None,
        tokenizer: "PreTrainedTokenizerBase",
        max_length: int,
        truncation: cut.Policy = "left",
        train_on: TrainOn = "assistant",
        system: str | None = None,
        control_tokens: ControlTokens = "encode",
        weights: dict[str, float] | None = None,
    ) -> None:
        if max_length < 2:
            raise UsageError(f"data.max_length: {max_length} leaves nothing to train on; it must be 2 or more.")
        self.template, self.max_length, self.truncation, self.train_on, self.system = template, max_length, truncation, train_on, system
        self.control_tokens = control_tokens
        self.tokens = Tokens(tokenizer)
        self.weights = None if weights is None else weight_table(weights, train_on)
        self.maker = PieceMaker(template, self.tokens, control_tokens, roles=weights is not None)
        self.shortener = Shortener(self.maker, max_length)

    def settings(self) -> dict[str, Any]:
        """All that the ids depend on, besides the rows."""
        tokens = self.tokens
        names = ("max_length", "truncation", "train_on", "system", "control_tokens")
        template = (self.template.source, self.template.tokens, self.template.reasoning) if self.template else None
        date = self.template.date if self.template else None
        ends = (tokens.bos_id, tokens.eos_id, tokens.adds_bos)
        weights = None if self.weights is None else self.weights.tolist()
        return {name: getattr(self, name) for name in names} | {
            "template": template, "tokenizer": tokens.json, "ends": ends, "weights": weights,
        } | ({} if date is None else {"date": date.isoformat()})  # fmt: skip

    def encode(self, row: Row) -> list[Sequence] | Dropped:
        """The row's sequences.

        Raises:
            UsageError: The template refuses the row, or the settings do.
        """
        encoded = self.process(row)
        return encoded if isinstance(encoded, Dropped) else encoded.sequences

    def process(self, row: Row) -> Encoded | Dropped:
        """The same as ``encode`` with what is to be reported."""
        (encoded,) = self.process_batch([row])
        return encoded

    def process_batch(self, rows: Items[Row]) -> list[Encoded | Dropped]:
        """What becomes of each row; the same as ``process`` of each, and far faster for hundreds at once.

        Raises:
            UsageError: The template refuses a row, or the settings do; then nothing is said of the others.
        """
        with _no_collection():
            return self._process(rows)  # what it makes on the way is gone before the collector looks

    def _process(self, rows: Items[Row]) -> list[Encoded | Dropped]:
        asked = [self._asked(row) for row in rows]
        made = self.maker.pieces([one for several in asked for one in several])
        outcomes, begin = [], 0
        for row, several in zip(rows, asked, strict=True):
            outcomes.append(self._outcome(row, several, made[begin : begin + len(several)]))
            begin += len(several)
        return outcomes

    def prompt(self, row: Chat) -> tuple[list[int], str | None]:
        """Ids up to where the last answer begins, never cut, and that answer's text; None where the conversation ends with the user."""
        *before, last = row.messages
        asked, label = (before, last.content) if last.role == "assistant" else ([*before, last], None)
        conversation = Conversation(row.place, self._with_system(tuple(asked)), row.tools, add_generation_prompt=True)
        ((pieces, _),) = self.maker.pieces([conversation])
        return pieces.ids.tolist(), label

    # -- steps --------------------------------------------------------------------------------------------------------------------

    def _asked(self, row: Row) -> list[Conversation] | list[Text]:
        if isinstance(row, Text):
            return [row]
        if isinstance(row, Chat | Prompt):
            asks = isinstance(row, Prompt)
            return [Conversation(row.place, self._with_system(row.messages), row.tools, add_generation_prompt=asks)]
        assert isinstance(row, Pair | Rated), row
        return [Conversation(row.place, self._with_system(messages), row.tools) for messages in pairs.completions(row)]

    def _with_system(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        if not self.system or (messages and messages[0].role == "system"):
            return messages
        return (Message("system", self.system), *messages)

    def _outcome(self, row: Row, asked: list, made: Made) -> Encoded | Dropped:
        if isinstance(row, Text):
            return self._text(*made[0])
        if isinstance(row, Chat):
            return self._chat(asked[0], *made[0])
        if isinstance(row, Prompt):
            return self._prompt(row, asked[0], *made[0])
        return self._rated(row, asked, made) if isinstance(row, Rated) else self._answers(asked, made)

    def _chat(self, asked: Conversation, pieces: Pieces, spelled: Counter[str]) -> Encoded | Dropped:
        if not any(pieces.trained):
            return Dropped("no trained token")
        only_last, cut_off, ends_cut, tokens = self.train_on == "last", False, 0, len(pieces.ids)
        if (whole := fitting(pieces, self.max_length)) is not None:
            kept = [whole]
        elif self.truncation == "llamafactory":
            turns = pieces.turns()
            shorter = cut.llamafactory(turns, self.max_length, last_first=only_last)
            ends_cut, cut_off = cut.ends_cut(turns, shorter, only_last), True
            kept = [Pieces.of(shorter)]
        elif self.truncation == "split" and not only_last:
            kept, cut_off = self.shortener.split(asked, tokens)
        else:
            left, cut_off = self._shorten(asked, tokens), True
            kept = [] if left is None else [left]
        sequences = [sequence for part in kept if (sequence := label(part, self.train_on, self.weights)) is not None]
        if not sequences:
            return self._nothing_left(bool(kept))
        return Encoded(sequences, cut_off, spelled, _empty(asked.messages, only_last), ends_cut, split=len(kept) > 1)

    def _rated(self, row: Rated, asked: list[Conversation], made: Made) -> Encoded | Dropped:
        """Its answer, and the mismatched one if it has one."""
        encoded = self._answers(asked[:1], made[:1])
        if isinstance(encoded, Dropped):
            return encoded
        others = [self._measured(pieces) for pieces, _ in made[1:]]
        found = [sequence for sequence in (*encoded.sequences, *others) if sequence is not None]
        if len(found) < len(made):
            return Dropped("no trained token")
        extras = {"good": np.array(row.good, np.float32)}
        return replace(encoded, sequences=[replace(sequence, extras=extras) for sequence in found])

    def _measured(self, pieces: Pieces) -> Sequence | None:
        """An answer that is not learned may be cut like its prompt."""
        answer = pairs.Answer.of(pieces)
        if answer is None:
            return None
        (kept,) = pairs.whole([answer], self.max_length) or pairs.llamafactory([answer], self.max_length)
        return label(kept.pieces(), "last")

    def _answers(self, asked: list[Conversation], made: Made) -> Encoded | Dropped:
        """Of a pair, or one answer."""
        found = [answer for pieces, _ in made if (answer := pairs.Answer.of(pieces)) is not None]
        if len(found) < len(made):
            return Dropped("no trained token")
        longest = max(range(len(found)), key=lambda number: len(found[number].answer))
        answers, cut_off, ends_cut = pairs.whole(found, self.max_length), False, 0
        if answers is None:
            cut_off = True
            if self.truncation == "llamafactory":
                answers = pairs.llamafactory(found, self.max_length)
                ends_cut = sum(len(short.answer) < len(one.answer) for short, one in zip(answers, found, strict=True))
            elif (left := self._shorten(asked[longest], len(made[longest][0].ids))) is not None:
                shorter = pairs.Answer.of(left)
                assert shorter is not None, "an answer is never cut off without its prompt"
                answers = pairs.with_prompt(found, shorter.prompt)
        labelled = [label(answer.pieces(), "last") for answer in answers or []]
        sequences = [sequence for sequence in labelled if sequence is not None]
        if not sequences or len(sequences) < len(labelled):
            return self._nothing_left(bool(labelled))
        spelled = made[0][1]
        for _, more in made[1:]:
            spelled = spelled | more  # what they share is in the prompt
        empty = any(_empty(one.messages, only_last=True) for one in asked)
        equal = len(sequences) > 1 and np.array_equal(sequences[0].input_ids, sequences[1].input_ids)
        return Encoded(sequences, cut_off, spelled, empty, ends_cut, equal_answers=equal)

    def _prompt(self, row: Prompt, asked: Conversation, pieces: Pieces, spelled: Counter[str]) -> Encoded | Dropped:
        """Up to where the assistant begins; nothing of it is trained."""
        ids, cut_off = pieces.ids, len(pieces.ids) > self.max_length
        if cut_off and self.truncation == "drop":
            return Dropped(f"longer than {self.max_length} tokens")
        if cut_off and self.truncation == "error":
            self._refuse(asked, len(ids))
        if cut_off:
            shorten = questions.cut_right if self.truncation == "llamafactory" else questions.cut_left
            ids = shorten(asked, ids, self.max_length, self.maker, row.label)
        return Encoded([Sequence(ids, np.full(len(ids), IGNORE, np.int32), note=questions.note_of(row))], cut_off, spelled)

    def _shorten(self, asked: Conversation, tokens: int) -> Pieces | None:
        if self.truncation == "error":
            self._refuse(asked, tokens)
        return None if self.truncation == "drop" else self.shortener.left(asked, tokens)

    def _refuse(self, asked: Conversation, tokens: int) -> NoReturn:
        raise UsageError(
            f"{asked.place}: {tokens} tokens, and data.max_length is {self.max_length}; data.truncation is error.\n"
            "Raise data.max_length, shorten the row, or choose  --data.truncation left  (or drop, or split)."
        )

    def _nothing_left(self, something_fits: bool) -> Dropped:
        if something_fits:
            return Dropped("no trained token")
        if self.truncation == "drop":
            return Dropped(f"longer than {self.max_length} tokens")
        return Dropped(f"the answer does not fit in {self.max_length} tokens")

    def _text(self, pieces: Pieces, spelled: Counter[str]) -> Encoded | Dropped:
        tokens = self.tokens
        begin = [tokens.bos_id] if tokens.adds_bos and tokens.bos_id is not None else []
        ids = np.concatenate([np.array(begin, np.int32), pieces.ids, np.array([tokens.eos_id], np.int32)])
        blocks = [ids[start : start + self.max_length] for start in range(0, len(ids), self.max_length)]
        sequences = [sequence_of(block, block.copy()) for block in blocks if len(block) > 1]  # a single token has none before it
        return Encoded(sequences, False, spelled) if sequences else Dropped("no trained token")


@contextmanager
def _no_collection() -> Iterator[None]:
    """Thousands of objects are made here, and no cycles; for them the collector would go through all of torch's objects again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _empty(messages: tuple[Message, ...], only_last: bool) -> bool:
    """Whether an answer that is trained says nothing at all."""
    for message in reversed(messages):
        if message.role == "assistant":
            if (not message.content or message.content.isspace()) and not message.reasoning and not message.tool_calls:
                return True
            if only_last:
                return False
    return False
