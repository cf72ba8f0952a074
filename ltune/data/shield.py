"""Stand-ins for the control tokens that a row's text spells, so that neither template nor tokenizer takes them for control tokens.

A stand-in is one private character. Texts are shielded before they are rendered, and the stand-ins give way to what was spelled
when the rendered text is tokenised (tokens.py).
"""

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ltune.data.roles import ROLES
from ltune.data.rows import Message, ToolCall
from ltune.errors import UsageError

# Characters that no text means anything by; those of plane 15 come last, as some fonts have icons there
PRIVATE_USE = ((0x100000, 0x10FF00), (0xF0000, 0xFFF00))
# As JSON (ASCII only) and Python's repr write a private character, where a template prints a tool's arguments so
ESCAPED = re.compile(r"\\U00(?:0f|10)[0-9a-f]{4}|\\ud[b][89a-f][0-9a-f]\\ud[c-f][0-9a-f]{2}|\\udb[c-f][0-9a-f]\\ud[c-f][0-9a-f]{2}")
WORD = re.compile(r"\w*")


class Shield:
    """Stand-ins, which must not occur in the texts that are to be rendered together.

    Args:
        names: The control tokens.
        spelled: Finds those that are to have stand-ins.
        start: The first private character that is used; see ``free_range``.
    """

    def __init__(self, names: list[str], spelled: re.Pattern[str], start: int) -> None:
        self.count = private_characters(names)
        self.start = start
        self.spelled = spelled
        self.sign = {name: chr(self.start + number) for number, name in enumerate(names)}
        self.name = {sign: name for name, sign in self.sign.items()}
        # Against joining with what stands beside it; the next two tell where one chosen text begins and ends, the others whose a text is
        self.mark, self.begin, self.end, *owners = (chr(self.start + len(names) + number) for number in range(private_characters([])))
        self.owner = dict(zip(ROLES[1:], owners, strict=True))

    def text(self, text: str, chosen: bool = False, role: str | None = None) -> str:
        """The text with stand-ins, and a mark at either end; ``chosen``: the marks that tell where it is; ``role``: whose it is.

        The marks stand inside of the outer white space, so that a template can strip it.
        """
        stripped = text.strip()
        if not stripped:
            return text
        begin, end = self.owner.get(role, self.mark) if role else self.mark, self.mark
        if chosen:
            begin, end = begin + self.begin, self.end + end
        before = text[: len(text) - len(text.lstrip())]
        shielded = self.spelled.sub(lambda match: self.sign[match.group()], stripped)
        return before + begin + shielded + end + text[len(before) + len(stripped) :]

    def message(self, message: Message, chosen: bool = False) -> Message:
        """The message with all its texts shielded."""
        return replace(
            message,
            content=self.text(message.content, chosen, message.role),
            reasoning=None if message.reasoning is None else self.text(message.reasoning, role=message.role),
            tool_calls=tuple(ToolCall(self.value(call.name), self.value(call.arguments)) for call in message.tool_calls),
        )

    def value(self, value: Any) -> Any:
        """Plain data with all its texts shielded. Plain words stay as they are: a template may ask for them (``type == "object"``)."""
        if isinstance(value, str):
            return value if WORD.fullmatch(value) and not self.spelled.search(value) else self.text(value)
        if isinstance(value, dict):
            return {self.value(key): self.value(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(inner) for inner in value]
        return value

    def unescape(self, rendered: str) -> str:
        """The rendered text with stand-ins that were written as escapes made characters again, or what is spelled by escapes too."""
        if "\\u" not in rendered.lower():
            return rendered
        return ESCAPED.sub(lambda match: self._unescaped(match.group()), rendered)

    def _unescaped(self, escape: str) -> str:
        character = _character(escape)
        if not self.start <= ord(character) < self.start + self.count:
            return escape
        name = self.name.get(character, "")
        return character if name.isascii() or escape.startswith("\\U") else json.dumps(name)[1:-1]


def texts_in(value: Any) -> Iterable[str]:
    """All texts in plain data, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from texts_in(key)
            yield from texts_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from texts_in(inner)


def _character(escape: str) -> str:
    if escape.startswith("\\U"):
        return chr(int(escape[2:], 16))
    high, low = int(escape[2:6], 16), int(escape[8:], 16)
    return chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))


def private_characters(names: list[str]) -> int:
    """How many a shield takes: a sign for each name, three marks, and one for each role."""
    return len(names) + 3 + len(ROLES[1:])


def free_range(needed: int, texts: Iterable[str]) -> int:
    """First of as many private characters, none of which occurs in the texts, not as an escape either."""
    used: set[int] = set()
    for text in texts:
        if not text.isascii():
            used |= {ord(character) for character in text if character >= "\U000f0000"}
        if "\\u" in text.lower():
            used |= {ord(_character(escape)) for escape in ESCAPED.findall(text)}
    starts = (start for first, last in PRIVATE_USE for start in range(first, last - needed, needed))
    if (start := next((start for start in starts if used.isdisjoint(range(start, start + needed))), None)) is None:
        raise UsageError("the row uses Unicode's private characters all over, and some are needed to keep its text apart; remove them.")
    return start
