"""From a record, as a file has it, to a row: alpaca, sharegpt, openai, completion (prompt and completion), text; pairs, rated answers,
prompts.

``columns`` and ``tags`` are LLaMA-Factory's: ``columns`` says which column plays which part, and where it is given it says all
(a column that it does not name is not read); ``tags`` says how the messages of a conversation are written.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from ltune.data.formats.conversations import answers_of, asked_and_said, parts_of, refuse_media, tools_of
from ltune.data.formats.detect import FORMATS, detect, pairs_for_others
from ltune.data.formats.messages import ordered
from ltune.data.formats.preference import pair, rated
from ltune.data.formats.prompt import prompt
from ltune.data.formats.values import Columns, Names, content, listed, required
from ltune.data.read import BadRows, Record, read
from ltune.data.rows import BadRow, Chat, Pair, Prompt, Rated, Row, Text
from ltune.errors import UsageError

if TYPE_CHECKING:
    from ltune.data.sources import Source

__all__ = ["FORMATS", "detect", "rows_of", "settled", "to_row"]

ANSWER, ANY = ("assistant", "calls"), ("assistant", "calls", "user", "tool")
TRAINED_ON = {Chat: "conversations", Prompt: "prompts"}
LOOK = 100  # rows that may be bad before the one that tells the format


def to_row(place: str, record: Any, format: str | None, columns: Names, tags: Names, rows: type[Row], *, answered: bool = True) -> Row:
    """The record as a row of the kind ``rows``; where ``format`` is None its columns tell.

    Args:
        place: For messages: where the record came from.
        record: Column to value; a BadRow is raised.
        format: One of FORMATS, or None.
        columns: prompt, query, response, history, messages, system, tools, chosen, rejected, kto_tag: the column that plays this part.
        tags: role_tag, content_tag, user_tag, assistant_tag, observation_tag, function_tag, system_tag.
        rows: What the objective trains on: Chat, Text, Pair, Rated or Prompt.
        answered: Whether a conversation must end with an answer.

    Raises:
        BadRow: Columns that fit no format, roles out of order, empty or non-text content, tool calls that are none, pictures.
        UsageError: Another kind of rows than asked for, several formats that fit: not this row's fault.
    """
    if isinstance(record, BadRow):
        raise record
    found = format or detect(place, record, columns, tags, rows)
    if found not in FORMATS:
        raise UsageError(f"{place}: the data set's format is {found}; there are {', '.join(FORMATS)}.")
    if issubclass(rows, Text):
        return _text(place, record, found, columns)
    if found == "text":
        raise UsageError(
            f"{place}: the data set has plain text, the objective trains on {TRAINED_ON.get(rows, 'answers')}.\n"
            "Use  --model.objective Pretrain , or a data set of conversations."
        )
    refuse_media(place, record, columns)
    if issubclass(rows, Pair):
        return pair(place, record, found, columns, tags)
    if issubclass(rows, Rated):
        return rated(place, record, found, columns, tags)
    if issubclass(rows, Prompt):
        return prompt(place, record, found, columns, tags)
    assert issubclass(rows, Chat), rows
    return _chat(place, record, found, columns, tags, answered)


def _text(place: str, record: Columns, format: str, columns: Names) -> Text:
    """A column of plain text: ``text``, or the one that plays the part of the prompt."""
    if format in ("sharegpt", "openai", "completion") or (format == "alpaca" and not columns):
        raise UsageError(
            f"{place}: the data set has conversations ({format}), the objective trains on plain text.\n"
            "Use  --model.objective SFT , or a data set with a text column."
        )
    column = (columns or {}).get("prompt", "text")
    required(place, record, "text", [column])
    return Text(place, content(place, column, record[column]))


def _chat(place: str, record: Columns, format: str, columns: Names, tags: Names, answered: bool) -> Chat:
    parts = parts_of(format, columns)
    if columns:
        _refuse_other_kinds(place, columns)
    messages = asked_and_said(place, record, format, columns, tags)
    if format in ("alpaca", "completion"):
        column = parts.get("response")
        if column is None and answered:
            raise BadRow(place, f"the data set's columns name no response, which {format} needs; got {listed(parts)}.")
        if answered and column not in record:
            if "chosen" in record and "rejected" in record:
                raise pairs_for_others(place)
            required(place, record, format, [column or ""])
        given = record.get(column) if column else None
        if answered or given:
            messages += answers_of(place, column or "", given, tags)
    elif not columns and "chosen" in record and "rejected" in record and messages[-1:] and messages[-1].role == "user" and answered:
        raise pairs_for_others(place)
    return Chat(place, ordered(place, messages, ANSWER if answered else ANY), tools_of(place, format, columns, record))


def _refuse_other_kinds(place: str, columns: dict[str, str]) -> None:
    if "chosen" in columns or "rejected" in columns:
        raise pairs_for_others(place)
    if "kto_tag" in columns:
        raise UsageError(
            f"{place}: the data set has rated answers (kto_tag), good ones and bad ones; the objective would learn both.\n"
            "Take the good ones out into a data set of their own."
        )


# -- a whole data set -----------------------------------------------------------------------------------------------------------------


def settled(source: "Source", records: list[Record], rows: type[Row]) -> "Source":
    """The source with its format: that of the first of the records that has one. Rows of another format are bad rows from there on.

    Raises:
        BadRow: None of the records has a known format, or could be read; the first one's fault.
        UsageError: Several formats fit.
    """
    if source.format is not None:
        return source
    first: BadRow | None = None
    for place, record in records:
        try:
            if isinstance(record, BadRow):
                raise record
            return replace(source, format=detect(place, record, source.columns, source.tags, rows))
        except BadRow as error:
            first = first or error
    if first is not None:
        raise first
    return source


def rows_of(
    source: "Source",
    rows: type[Row],
    *,
    bad_rows: BadRows = "error",
    on_bad: Callable[[str, str], None] = lambda place, reason: None,
    answered: bool = True,
    limit: int | None = None,
) -> Iterator[Row]:
    """The rows of a data set, in order.

    Args:
        source: As ``resolve`` found it.
        rows: The kind wanted.
        bad_rows: error: the first bad row is raised; skip: it is left out.
        on_bad: Told (place, reason) of each row that is left out.
        answered: Whether a conversation must end with an answer.
        limit: First rows taken, bad ones counted.
    """
    records = islice(read(source, bad_rows), limit)
    head = list(islice(records, LOOK if bad_rows == "skip" else 1))
    source = settled(source, head, rows)
    for place, record in chain(head, records):
        try:
            yield to_row(place, record, source.format, source.columns, source.tags, rows, answered=answered)
        except BadRow as error:
            if bad_rows == "error":
                raise
            on_bad(place, error.reason)
