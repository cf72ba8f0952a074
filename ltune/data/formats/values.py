"""Checks of a record's values: the column is there, its value is text, and text that can be trained on."""

from typing import Any

from ltune.data.rows import BadRow, WrongColumns
from ltune.data.strict_json import DECODER

Columns = dict[str, Any]  # of a record: name to value
Names = dict[str, str] | None
NEEDS = (
    "alpaca needs instruction and output; sharegpt: conversations; openai: messages; completion: prompt and completion; text: text.\n"
    "Rename the columns, or say which is which with the data set's format, columns and tags."
)


def content(place: str, what: str, value: Any, empty: bool = False) -> str:
    """The value, if it is text that a tokenizer takes; ``empty`` lets an empty one pass."""
    if type(value) is not str:
        raise BadRow(place, f"{what} must be text; got {short(value)}.")
    if not value and not empty:
        raise BadRow(place, f"{what} is empty.")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise BadRow(place, f"{what} holds half a surrogate pair, which is no character.") from error
    if "\0" in value:
        raise BadRow(place, f"{what} holds a null character, which is no text.")
    return value


def required(place: str, record: Columns, format: str, columns: list[str]) -> None:
    """Refuse a record that lacks one of the columns."""
    if missing := [column for column in columns if column not in record]:
        raise WrongColumns(place, f"{format} needs the column {' and '.join(missing)}; the row has {listed(record)}.\n{NEEDS}")


def optional(record: Columns, column: str | None) -> Any:
    """The column's value; None where there is no such column."""
    return record.get(column) if column else None


def from_json(place: str, what: str, value: Any) -> Any:
    """The value, or what the text has as JSON."""
    if not isinstance(value, str):
        return value
    try:
        found, end = DECODER.raw_decode(value.strip())
        if end == len(value.strip()):
            return found
        said = "something follows it"
    except (ValueError, RecursionError) as error:
        said = str(error).partition(": line 1 column ")[0]
    raise BadRow(place, f"{what}: not JSON: {said}; got {short(value)}.")


def listed(names: Any) -> str:
    """The names, for a message."""
    shown = ", ".join(str(name) if str(name).isprintable() else repr(name) for name in names) or "none"
    return shown if len(shown) <= 200 else f"{shown[:197]}..."


def short(value: Any) -> str:
    """The value, for a message."""
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."
