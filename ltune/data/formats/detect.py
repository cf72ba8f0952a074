"""Which format a record has, told by its columns; two that fit are one too many."""

from typing import Any

from ltune.data.formats.messages import written_as
from ltune.data.formats.values import NEEDS, Columns, Names, listed
from ltune.data.rows import BadRow, Pair, Prompt, Row, Text
from ltune.errors import UsageError

FORMATS = ("alpaca", "sharegpt", "openai", "completion", "text")


def detect(place: str, record: Columns, columns: Names, tags: Names, rows: type[Row]) -> str:
    """The format. A column ``text`` beside another format counts only where text is asked for.

    Raises:
        BadRow: None fits.
        UsageError: Several fit.
    """
    if columns:
        return _by_parts(record, columns, tags, rows)
    if "text" in record and issubclass(rows, Text):
        return "text"
    if issubclass(rows, Pair) and isinstance(record.get("chosen"), list):
        return "completion"  # each answer brings its conversation, or a prompt stands beside them
    found = {name: _written_as(record, name, tags) for name in ("conversations", "messages", "instruction", "completion")}
    fitting = {f"{format} ({name})": format for name, format in found.items() if format}
    if len(fitting) > 1:
        raise UsageError(
            f"{place}: the columns fit {' and '.join(fitting)}.\n"
            f"The row has {listed(record)}.\n"
            "Say which is meant with the data set's  format  (and columns, which name all that is read)."
        )
    if fitting:
        return next(iter(fitting.values()))
    if issubclass(rows, Pair) and "chosen" in record:
        return "completion"
    if issubclass(rows, Prompt) and "prompt" in record:
        return "completion"
    if "text" in record:
        return "text"
    if "chosen" in record and "rejected" in record:
        raise pairs_for_others(place)
    raise BadRow(place, f"no known format has the columns {listed(record)}.\n{NEEDS}")


def _by_parts(record: Columns, columns: dict[str, str], tags: Names, rows: type[Row]) -> str:
    if "messages" in columns or tags:
        return written_as(record.get(columns.get("messages", "")), tags)
    if issubclass(rows, Text):
        return "text"
    prompt: Any = record.get(columns.get("prompt", ""))
    if isinstance(prompt, list) or ("prompt" not in columns and "chosen" in columns):
        return "completion"
    return "alpaca" if {"response", "chosen", "kto_tag"} & columns.keys() or issubclass(rows, Prompt) else "text"


def _written_as(record: Columns, name: str, tags: Names) -> str | None:
    if name not in record or (name == "completion" and "prompt" not in record):
        return None
    return {"instruction": "alpaca", "completion": "completion"}.get(name) or written_as(
        record[name], tags, "openai" if name == "messages" else "sharegpt"
    )


def pairs_for_others(place: str) -> UsageError:
    """The data set has pairs and the objective wants something else."""
    return UsageError(
        f"{place}: the data set has pairs of answers (chosen, rejected), the objective trains on single ones.\n"
        "To train on the better ones alone, name them in the data set's columns, for example  {prompt: prompt, response: chosen}"
    )
