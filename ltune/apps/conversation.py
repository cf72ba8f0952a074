"""A conversation with a model: the turns so far, fitted into what the model can read, and answers piece by piece."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ltune.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ltune.data.rows import Message
    from ltune.data.templates import Template
    from ltune.generation.sampling import Sampling

NO_LIMIT = sys.maxsize


class Conversation:
    """The turns so far, and the model that answers. `context` is the model's limit in tokens."""

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, template: Template, sampling: Sampling, system: str | None, context: int
    ) -> None:
        from ltune.data.encode import Encoder

        self.model, self.tokenizer, self.sampling, self.system, self.context = model, tokenizer, sampling, system, context
        self.encoder = Encoder(template, tokenizer, max_length=NO_LIMIT, truncation="left", train_on="assistant", system=None)
        self.stop_ids = _stop_ids(template, tokenizer, model)
        self.turns: list[Message] = []  # user, assistant, user, assistant ...

    def reply(self, question: str) -> Generator[str, None, None]:
        """Pieces of the answer as they come. What was said, if anything, is kept as a turn, also when the caller stops early."""
        from ltune.data.rows import Message
        from ltune.generation.engine import stream

        asked = Message("user", question)
        ids = self._fit(asked)
        sampling = replace(self.sampling, max_new_tokens=min(self.sampling.max_new_tokens, self.context - len(ids)))
        said = ""
        try:
            with closing(stream(self.model, ids, sampling, self.stop_ids, pad_id=0)) as tokens:  # a single prompt is never padded
                for piece in pieces(tokens, self._decode):
                    said += piece
                    yield piece
        finally:
            if said:
                self.turns += [asked, Message("assistant", said)]

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _fit(self, asked: Message) -> list[int]:
        """Prompt ids that leave room for an answer, after dropping as many of the oldest turns as that takes."""
        room = min(self.sampling.max_new_tokens, self.context // 4)
        dropped = 0
        while len(ids := self._encode(asked)) + room > self.context and self.turns:
            del self.turns[:2]
            dropped += 1
        if dropped:
            note(f"the model reads at most {self.context} tokens: forgot the oldest {dropped} question(s) with their answers")
        if len(ids) >= self.context:
            raise UsageError(
                f"the question has {len(ids)} tokens with its system text, the model reads at most {self.context}: not answered"
            )
        return ids

    def _encode(self, asked: Message) -> list[int]:
        from ltune.data.rows import Chat, Message

        system = [Message("system", self.system)] if self.system else []
        ids, _ = self.encoder.prompt(Chat(place="chat", messages=(*system, *self.turns, asked)))
        return ids


def pieces(tokens: Iterable[int], decode: Callable[[list[int]], str]) -> Iterator[str]:
    """Text from ids, as soon as it is certain.

    One character may take several ids, and decoding half of it gives U+FFFD: such an end is held back until it is whole (or
    dropped, if the ids end there). Ids since the last certain point are decoded together with the stretch before it, as a
    word's leading space depends on what stands before.
    """
    before: list[int] = []  # ids of the last certain stretch
    held: list[int] = []  # ids after it
    for token in tokens:
        held.append(token)
        known, text = decode(before), decode(before + held)
        if len(text) > len(known) and not text.endswith("\ufffd"):
            yield text[len(known) :]
            before, held = held, []
    if held:
        known, text = decode(before), decode(before + held).rstrip("\ufffd")
        if len(text) > len(known):
            yield text[len(known) :]


def _stop_ids(template: Template, tokenizer: PreTrainedTokenizerBase, model: Any) -> set[int]:
    """The template's; where it has no marks, and so does not show what ends an answer, those that the model's folder names."""
    from ltune.data.templates import MARKS

    if MARKS.search(template.source):
        return template.stop_ids(tokenizer)
    named = model.generation_config.eos_token_id
    return {tokenizer.eos_token_id, *(named if isinstance(named, list) else [] if named is None else [named])}


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
