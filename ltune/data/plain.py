"""Whether a record is plainly a row of its kind, told in half a microsecond: the usual columns and roles, and text where text belongs.

What is not plain need not be wrong. It is handed to ``to_row``, which has the last word and all the words; so nothing here may pass what
``to_row`` refuses, and it may leave as much to it as it likes.
"""

from collections.abc import Callable
from typing import Any

from ltune.data.formats import FORMATS
from ltune.data.formats.conversations import MEDIA, SINGLE_MEDIA, parts_of
from ltune.data.formats.messages import Spelling, spelling
from ltune.data.formats.values import Columns, Names
from ltune.data.rows import Chat, Pair, Prompt, Rated, Row, Text

Plain = Callable[[Columns], int]
"""The number of keys in the record and in all that stands in it; 0 where it is not plain. It may raise KeyError or TypeError instead. Text
that holds a null character is not noticed."""

ANSWERS = {Chat: ("response",), Rated: ("response",), Pair: ("chosen", "rejected"), Prompt: ()}  # parts that are text of the assistant's
ENDS = {Pair: ("user",), Prompt: ("user", "assistant")}  # roles of the last message, where it need not be the assistant's
KINDS = (Text, Chat, Pair, Rated, Prompt)


def plain(format: str, columns: Names, tags: Names, rows: type[Row]) -> Plain | None:
    """How to tell for records of this format (one of FORMATS), columns and tags; None where nothing plain is known."""
    kind = next((kind for kind in KINDS if issubclass(rows, kind)), None)
    if kind is Text and (format == "text" or (format == "alpaca" and columns)):
        return plain_text((columns or {}).get("prompt", "text"))
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
        return question(parts["prompt"], parts.get("query") if format == "alpaca" else None, answers, marks, texts, apart)
    answers = [parts.get(part) for part in ANSWERS[kind]] if kind is Pair else []
    if None in (*answers, *marks) or (answers and tags and format == "openai"):  # whose answers are written otherwise
        return None
    column = (columns or {}).get("messages") or ("messages" if format == "openai" else "conversations")
    return talk(column, spelling(format, tags), answers, marks, parts.get("system"), apart, ENDS.get(kind, ("assistant",)))


# Functions within functions: they are called for every row, and find what they need faster than methods do


def plain_text(column: str) -> Plain:
    """A column of text."""

    def keys(record: Columns) -> int:
        text = record[column]
        if type(text) is not str or not text:
            return 0
        return 1 if len(record) == 1 else keys_in(record)

    return keys


def question(prompt: str, query: str | None, answers: list, marks: list, texts: list, apart: list) -> Plain:
    """alpaca, completion: a question and answers, each a column of text.

    Args:
        prompt: Column of the question.
        query: Column of its second part; one of both may be empty.
        answers: Columns of text, which may be empty.
        marks: Columns that are true or false.
        texts: Columns that may be text, empty or missing.
        apart: Columns that must be empty or missing.
    """
    others = frozenset([*texts, *apart])

    def keys(record: Columns) -> int:
        asked, further, seen = record[prompt], record.get(query), 1  # type: ignore[call-overload]
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
        if not others.isdisjoint(record) and not all(map(is_plain, others, map(record.get, others))):
            return 0
        return seen if seen == len(record) else keys_in(record)

    def is_plain(column: str, value: Any) -> bool:
        return not value or (column in texts and type(value) is str)

    return keys


def talk(column: str, spelled: Spelling, answers: list, marks: list, system: str | None, apart: list, ends: tuple[str, ...]) -> Plain:
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
    role, content, roles = spelled
    begin, after = _order(roles)
    last = [after[name] for name in ends]
    beside = bool(answers or marks)

    def keys(record: Columns) -> int:
        messages, follows = record[column], begin
        if type(messages) is not list:
            return 0
        for message in messages:
            follows, text = follows[message[role]], message[content]
            if type(text) is not str or not text or len(message) != 2:
                return 0
        if not any([follows is end for end in last]):
            return 0
        if len(record) == 1:
            return 0 if beside else 1 + 2 * len(messages)
        return keys_in(record) if is_plain_beside(record, messages[0][role]) else 0

    def is_plain_beside(record: Columns, first: str) -> bool:
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
