"""From messages to text, and which of it is the assistant's.

What is trained stands between ``{% generation %}`` marks. A template without any is rendered up to before each answer and up to after it:
the difference is the answer, provided that what was written before stays as it was. It refuses to know tokens, and files.
"""

import datetime
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ltune.data.openai_messages import to_openai, with_text_arguments, wrapped
from ltune.data.prefixes import Piece, Unpreserved, by_prefix, masked, untrained
from ltune.data.rows import Message
from ltune.data.sandbox import Marked, TooMuch, pieces
from ltune.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Reasoning = Literal["keep", "drop_history", "mask", "drop"]
MARKS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
KNOWS_REASONING = re.compile(r"""reasoning_content|message\.(thinking|reasoning)\b|\[['"](thinking|reasoning)['"]\]""")
PROBE = (
    Message("user", "first question"),
    Message("assistant", "first answer"),
    Message("user", "second question"),
    Message("assistant", "second answer"),
)


class Segment(NamedTuple):
    """A piece of a rendered conversation. The pieces joined are the whole of it."""

    text: str
    trained: bool  # the assistant's, its end token included


@dataclass(frozen=True)
class Template:
    """A chat template.

    Args:
        name: Its name, or its file, or "of the tokenizer".
        source: The Jinja text, complete: other tools render the same from it.
        tokens: bos_token, eos_token ... of the tokenizer.
        default_system: The system text that it puts where there is none.
        stop_words: Texts that end an answer.
        date: That templates write which write today's; None: always the same one.
        reasoning: What becomes of the assistant's reasoning. keep: it is trained; drop_history: left out before the last question, as
            most thinking models have it, and answers there that are then not written as they were said are not trained; mask: written
            but not trained; drop: left out.
    """

    name: str
    source: str
    tokens: dict[str, str] = field(default_factory=dict)
    default_system: str | None = None
    stop_words: tuple[str, ...] = ()
    reasoning: Reasoning = "keep"
    date: datetime.date | None = None

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool = False, tools: Sequence[dict[str, Any]] = ()
    ) -> list[Segment]:
        """The conversation in consecutive pieces, none empty; with ``add_generation_prompt`` up to where the assistant speaks.

        Args:
            messages: The conversation.
            add_generation_prompt: Whether the assistant is to speak next.
            tools: What it can call, as JSON schemas.

        Raises:
            UsageError: The template refuses these messages, leaves something out, or does not tell what is trained.
        """
        plain = all(message.reasoning is None for message in messages)
        kept = messages if plain else self._kept(messages)
        parts = self._parts(kept, add_generation_prompt, tools)
        if self.reasoning == "drop_history" or (self.reasoning == "mask" and not plain):
            parts = self._train_less(parts, messages, kept, add_generation_prompt, tools)
        self._check_complete("".join(text for text, _ in parts), kept, tools)
        return [Segment(text, trained) for text, trained in parts if text]

    def text(self, messages: Sequence[Message], add_generation_prompt: bool = False, tools: Sequence[dict[str, Any]] = ()) -> str:
        """The conversation as one text, whatever is trained of it.

        Raises:
            UsageError: The template refuses these messages.
        """
        return "".join(self._written(messages, add_generation_prompt, tools))

    # -- rendering ----------------------------------------------------------------------------------------------------------------

    def _parts(self, messages: Sequence[Message], add_generation_prompt: bool, tools: Sequence[dict[str, Any]]) -> list[Piece]:
        if self.marked:
            return [(str(text), isinstance(text, Marked)) for text in _joined(self._written(messages, add_generation_prompt, tools))]
        write: Callable[[Sequence[Message], bool], str] = lambda some, asked: self.text(some, asked, tools)  # noqa: E731
        # Before a new answer, how earlier ones are written says nothing of training
        lenient = add_generation_prompt or self.reasoning == "drop_history"
        return by_prefix(messages, write, add_generation_prompt, lenient, self.tokens.get("eos_token"), self.name)

    def _written(self, messages: Sequence[Message], add_generation_prompt: bool, tools: Sequence[dict[str, Any]]) -> list[str]:
        variables: dict[str, Any] = {
            "messages": to_openai(messages, self._knows_reasoning),
            "tools": wrapped(tools),
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **self.tokens,
        }
        if self.date is not None:  # as Llama's have it, and as all others ask for it
            day = datetime.datetime(self.date.year, self.date.month, self.date.day)
            variables |= {"date_string": day.strftime("%d %b %Y"), "strftime_now": day.strftime}
        try:
            try:
                return pieces(self.source, variables)
            except TypeError:  # DeepSeek's want the arguments of a call as JSON text
                if not any(message.tool_calls for message in messages):
                    raise
                return pieces(self.source, variables | {"messages": with_text_arguments(variables["messages"])})
        except TooMuch as error:
            raise UsageError(f"the chat template {self.name} is stopped: {error}.\nChoose another one:  --data.template") from error
        except Exception as error:  # whatever its code does wrong
            shown = " ".join(str(error).split())[:300] or type(error).__name__
            with_tools = tools or any(message.role == "tool" or message.tool_calls for message in messages)
            hint = "\nFor rows with tools choose one that knows them, for example  --data.template qwen" if with_tools else ""
            raise UsageError(f"the chat template {self.name} cannot render this conversation: {shown}{hint}") from error

    @cached_property
    def marked(self) -> bool:
        """Whether it says itself what is trained."""
        return MARKS.search(self.source) is not None

    @cached_property
    def _knows_reasoning(self) -> bool:
        return KNOWS_REASONING.search(self.source) is not None

    # -- reasoning ----------------------------------------------------------------------------------------------------------------

    def _kept(self, messages: Sequence[Message]) -> Sequence[Message]:
        if self.reasoning in ("keep", "mask"):
            return messages
        until = len(messages) if self.reasoning == "drop" else _last_question(messages)
        return [replace(message, reasoning=None) if number < until else message for number, message in enumerate(messages)]

    def _train_less(
        self,
        parts: list[Piece],
        messages: Sequence[Message],
        kept: Sequence[Message],
        add_generation_prompt: bool,
        tools: Sequence[dict[str, Any]],
    ) -> list[Piece]:
        """Without the reasoning itself (mask), or without earlier answers that are not written as they were said (drop_history)."""
        write: Callable[[Sequence[Message]], list[Piece]] = lambda some: self._parts(some, add_generation_prompt, tools)  # noqa: E731
        if self.reasoning == "mask":
            try:
                return masked(parts, kept, write, self.name)
            except UsageError:
                if add_generation_prompt:  # nothing of it is trained
                    return parts
                raise
        past = [number for number in range(_last_question(messages)) if messages[number].role == "assistant"]
        whole = "".join(text for text, _ in parts)
        changed = [number for number in past if not whole.startswith(self.text(self._kept(messages[: number + 1]), False, tools))]
        return untrained(parts, kept, changed, write) if changed else parts

    # -- checks -------------------------------------------------------------------------------------------------------------------

    def _check_complete(self, text: str, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> None:
        """Some templates leave out what they know nothing of, without a word."""
        missing = None
        for message in messages:
            if (content := message.content.strip()) not in text and not _said(content, text):
                missing = "the system text" if message.role == "system" else f"what the {message.role} says"
            if message.reasoning and message.reasoning.strip() not in text:
                missing = "the reasoning of an answer"
            if message.tool_calls and not all(_said(call.name, text) for call in message.tool_calls):
                missing = "a tool call"
        if tools and not all(_said((tool.get("function") or tool).get("name", ""), text) for tool in tools):
            missing = "the tools"
        if missing:
            advice = "data.reasoning drop_history or drop" if "reasoning" in missing else "a named one, see  ltune templates"
            raise UsageError(f"the chat template {self.name} leaves out {missing}.\nChoose another  --data.template , or {advice}.")

    # -- ends of answers ----------------------------------------------------------------------------------------------------------

    def stop_ids(self, tokenizer: "PreTrainedTokenizerBase") -> set[int]:
        """Tokens at which generation ends: the tokenizer's end token, the stop words that are tokens, and what ends a rendered answer."""
        vocabulary = tokenizer.get_vocab()
        words = [tokenizer.eos_token, self.end_token(tokenizer), *self.stop_words]
        return {vocabulary[word] for word in words if word is not None and word in vocabulary}

    def end_token(self, tokenizer: "PreTrainedTokenizerBase") -> str | None:
        """The control token that the template writes behind an answer, if that is one token of this tokenizer."""
        end = self.end_text.lstrip()
        starts = [token for token in tokenizer.get_added_vocab() if end.startswith(token)]
        return max(starts, key=len, default=None)

    @cached_property
    def end_text(self) -> str:
        """What it writes behind an answer, as a part of it."""
        return self.probed(PROBE[:2]).split(PROBE[1].content, 1)[-1]

    def probed(self, probe: Sequence[Message]) -> str:
        """What is trained of a conversation that all templates should take.

        Raises:
            UsageError: This one does not.
        """
        try:
            segments = self.render(probe)
        except Unpreserved as error:
            try:  # one that leads every answer in with reasoning
                segments = self.render(
                    [replace(message, reasoning="because") if message.role == "assistant" else message for message in probe]
                )
            except UsageError:
                raise error from None
        return "".join(segment.text for segment in segments if segment.trained)


def _joined(written: list[str]) -> list[str]:
    """Neighbours that are not marked, put together."""
    joined: list[str] = []
    for text in written:
        if not text and not isinstance(text, Marked):
            continue
        if joined and not isinstance(text, Marked) and not isinstance(joined[-1], Marked):
            joined[-1] += text
        else:
            joined.append(text)
    return joined


def _last_question(messages: Sequence[Message]) -> int:
    return max((number for number, message in enumerate(messages) if message.role == "user"), default=0)


def _said(name: str, text: str) -> bool:
    return name in text or json.dumps(name, ensure_ascii=False)[1:-1] in text
