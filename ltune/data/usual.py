"""What rows of a kind usually are: which columns are text, which are empty, how messages follow each other. Rows that are so are rows of
their kind, whatever else they say; of others, this knows nothing.

There are two ways to tell, a slow one for any record (``test``), and a quick one for rows that are written like another (``written.py``).
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from ltune.data.formats import FORMATS
from ltune.data.formats.conversations import MEDIA, SINGLE_MEDIA, parts_of
from ltune.data.formats.messages import Spelling, spelling
from ltune.data.formats.values import Columns, Names
from ltune.data.rows import Chat, Pair, Prompt, Rated, Row, Text
from ltune.data.written import EMPTY, MARK, NOTHING, PLAIN, SOME_TEXT, TEXT, TEXT_OR_NULL, Style

Test = Callable[[Columns], int]
"""The number of keys in the record and in all that stands in it; 0 where it is not as usual. It may raise KeyError or TypeError instead.
Text that holds a null character is not noticed."""

ANSWERS = {Chat: ("response",), Rated: ("response",), Pair: ("chosen", "rejected"), Prompt: ()}  # parts that are text of the assistant's
ENDS = {Pair: ("user",), Prompt: ("user", "assistant")}  # roles of the last message, where it need not be the assistant's
KINDS = (Text, Chat, Pair, Rated, Prompt)


class Usual(ABC):
    """Rows of one kind, format and set of columns."""

    needed: set[str]  # columns that every row has

    @abstractmethod
    def test(self) -> Test:
        """For any record. A function within a function: it is called for every row, and finds what it needs faster than a method does."""

    @abstractmethod
    def value(self, column: str, given: Any, style: Style) -> bytes:
        """A pattern of what stands in this column.

        Args:
            column: Its name.
            given: What stands there in the row that others are like.
            style: How that row is written.
        """


def usual(format: str, columns: Names, tags: Names, rows: type[Row]) -> Usual | None:
    """What is usual for records of this format (one of FORMATS), columns and tags; None where nothing is known."""
    kind = next((kind for kind in KINDS if issubclass(rows, kind)), None)
    if kind is Text and (format == "text" or (format == "alpaca" and columns)):
        return Question((columns or {}).get("prompt", "text"), None, [], [], [], [])
    if kind in (Text, None) or format not in FORMATS or format == "text":
        return None
    if kind is Chat and columns and {"chosen", "rejected", "kto_tag"} & columns.keys():
        return None
    parts = parts_of(format, columns)
    marks = [columns.get("kto_tag") if columns else "label"] if kind is Rated else []
    media = [columns.get(part) for part in MEDIA] if columns else [*MEDIA, *SINGLE_MEDIA]
    apart = [*media, parts.get("tools"), parts.get("history")]
    if format in ("alpaca", "completion"):
        answers = [parts.get(part) for part in ANSWERS[kind]]
        if "prompt" not in parts or None in (*answers, *marks):
            return None
        texts = [parts.get("system"), parts.get("response") if kind is Prompt else None]
        return Question(parts["prompt"], parts.get("query") if format == "alpaca" else None, answers, marks, texts, apart)
    answers = [parts.get(part) for part in ANSWERS[kind]] if kind is Pair else []
    if None in (*answers, *marks) or (answers and tags and format == "openai"):  # whose answers are written otherwise
        return None
    column = (columns or {}).get("messages") or ("messages" if format == "openai" else "conversations")
    return Talk(column, spelling(format, tags), answers, marks, parts.get("system"), apart, ENDS.get(kind, ("assistant",)))


class Question(Usual):
    """alpaca, completion, text: a question and answers, each a column of text.

    Args:
        prompt: Column of the question.
        query: Column of its second part; one of both may be empty.
        answers: Columns of text, which may be empty.
        marks: Columns that are true or false.
        texts: Columns that may be text, empty or missing.
        apart: Columns that must be empty or missing.
    """

    def __init__(self, prompt: str, query: str | None, answers: list, marks: list, texts: list, apart: list) -> None:
        self.prompt, self.query, self.answers, self.marks, self.texts, self.apart = prompt, query, answers, marks, texts, apart
        self.needed = {prompt, *answers, *marks}

    def test(self) -> Test:
        prompt, query, answers, marks, texts = self.prompt, self.query, self.answers, self.marks, self.texts
        others = frozenset([*texts, *self.apart])

        def keys(record: Columns) -> int:
            asked, further, seen = record[prompt], record.get(query), 1  # type: ignore[arg-type]
            if further is not None:
                if type(further) is not str:
                    return 0
                seen = 2
            if type(asked) is not str or not (asked or further):
                return 0
            for column in answers:
                if type(record[column]) is not str:
                    return 0
                seen += 1
            if marks and not _marked(record, marks):
                return 0
            if not others.isdisjoint(record) and not all(map(is_usual, others, map(record.get, others))):
                return 0
            return seen if seen == len(record) else keys_in(record)

        def is_usual(column: str, value: Any) -> bool:
            return not value or (column in texts and type(value) is str)

        return keys

    def value(self, column: str, given: Any, style: Style) -> bytes:
        if column == self.prompt:
            return SOME_TEXT
        if column in self.answers:
            return TEXT
        return _beside(column, given, style, self.marks, [*self.texts, self.query], self.apart)


class Talk(Usual):
    """sharegpt, openai: messages of two keys, whose roles follow each other as usual.

    Args:
        column: Of the messages.
        spelled: How they are written.
        answers: Columns of answers that stand beside them, as text or as a message.
        marks: Columns that are true or false.
        system: Column that may be text, unless the messages begin with a system text too.
        apart: Columns that must be empty or missing.
        ends: Roles of the last message.
    """

    def __init__(
        self, column: str, spelled: Spelling, answers: list, marks: list, system: str | None, apart: list, ends: tuple[str, ...]
    ) -> None:
        self.column, self.spelled, self.answers, self.marks, self.system = column, spelled, answers, marks, system
        self.apart, self.ends = apart, ends
        self.needed = {column, *answers, *marks}

    def test(self) -> Test:
        column, answers, marks, system, apart = self.column, self.answers, self.marks, self.system, self.apart
        role, content, roles = self.spelled
        begin, after = _order(roles)
        last = [id(after[name]) for name in self.ends]
        alone = not answers and not marks

        def keys(record: Columns) -> int:
            messages, follows = record[column], begin
            if type(messages) is not list:
                return 0
            for message in messages:
                follows, text = follows[message[role]], message[content]
                if type(text) is not str or not text or len(message) != 2:
                    return 0
            if id(follows) not in last:
                return 0
            if alone and len(record) == 1:
                return 1 + 2 * len(messages)
            return keys_in(record) if is_usual_beside(record, messages[0][role]) else 0

        def is_usual_beside(record: Columns, first: str) -> bool:
            before = record.get(system) if system else None
            return (
                all(is_answer(record[name]) for name in answers)
                and _marked(record, marks)
                and not (before and (type(before) is not str or roles[first] == "system"))
                and not any(map(record.get, apart))
            )

        def is_answer(given: Any) -> bool:
            if type(given) is str:
                return True
            return len(given) == 2 and roles[given[role]] == "assistant" and type(given[content]) is str

        return keys

    def value(self, column: str, given: Any, style: Style) -> bytes:
        if column == self.column:
            return style.items(self._messages(given[0], style)) if type(given) is list and given else NOTHING
        if column in self.answers:
            return self._message("assistant", TEXT, given, style) if type(given) is dict else TEXT
        return _beside(column, given, style, self.marks, [self.system], self.apart)

    def _messages(self, like: Any, style: Style) -> bytes:
        user, answer = (self._message(role, text, like, style) for role, text in (("user", SOME_TEXT), ("assistant", TEXT)))
        comma = style.comma
        if self.ends == ("assistant",):
            turns = user + comma + answer + b"(?:%s%s%s%s)*+" % (comma, user, comma, answer)
        else:
            turns = user + b"(?:%s%s%s%s)*+" % (comma, answer, comma, user)
        if style.has(self.system):
            return turns
        return b"(?:%s%s)?+" % (self._message("system", SOME_TEXT, like, style), comma) + turns

    def _message(self, role: str, text: bytes, like: Any, style: Style) -> bytes:
        if type(like) is not dict or like.keys() != {self.spelled.role, self.spelled.content}:
            return NOTHING
        names = [re.escape(written.encode()) for written, meant in self.spelled.roles.items() if meant == role and PLAIN.fullmatch(written)]
        return style.members({key: b'"(?:%s)"' % b"|".join(names) if key == self.spelled.role else text for key in like})


def _beside(column: str, given: Any, style: Style, marks: list, texts: list, apart: list) -> bytes:
    """A pattern of what stands in a column beside questions and answers."""
    if column in marks:
        return MARK
    if column == "kto_tag" and marks:
        return NOTHING
    if column in apart:
        return EMPTY
    return TEXT_OR_NULL if column in texts else style.like(given)


def _order(roles: dict[str, str]) -> tuple[dict, dict[str, dict]]:
    """What a conversation may begin with, by the role as written, and what may come after a role: each leads to what may come then."""
    begin: dict[str, dict] = {}
    after: dict[str, dict[str, dict]] = {"system": {}, "user": {}, "assistant": {}}
    behind = {"system": [begin], "user": [begin, after["system"], after["assistant"]], "assistant": [after["user"]]}
    for written, role in roles.items():
        for before in behind.get(role, []):
            before[written] = after[role]
    return begin, after


def _marked(record: Columns, marks: list[str]) -> bool:
    """Whether the marks are true or false. Where no columns are named, kto_tag comes before label."""
    return not any(type(record[mark]) is not bool or (mark == "label" and "kto_tag" in record) for mark in marks)


def keys_in(value: Any) -> int:
    """How many keys the objects in a value have: itself, and all that stand in it."""
    if type(value) is dict:
        return len(value) + sum([keys_in(one) for one in value.values() if type(one) is dict or type(one) is list])
    return sum([keys_in(one) for one in value if type(one) is dict or type(one) is list]) if type(value) is list else 0
