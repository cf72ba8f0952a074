"""One function a format, record to messages: alpaca, conversation (sharegpt and openai), completion (prompt and answer apart).

Each gives what is said up to where the answer would begin, and the answers' columns are the caller's; ``system`` and ``tools`` are columns
of all of them.
"""

from typing import Any

from ltune.data.formats.messages import Message, Spelling, assistant, messages_of, spelling, spelling_of
from ltune.data.formats.tools import tools
from ltune.data.formats.values import Columns, Names, content, listed, optional, required, short
from ltune.data.rows import BadRow

PARTS = {  # which column plays which part where the data set does not say
    "alpaca": {
        "prompt": "instruction", "query": "input", "response": "output", "system": "system", "history": "history", "tools": "tools",
        "chosen": "chosen", "rejected": "rejected",
    },
    "sharegpt": {"system": "system", "tools": "tools", "chosen": "chosen", "rejected": "rejected"},
    "openai": {"system": "system", "tools": "tools", "chosen": "chosen", "rejected": "rejected"},
    "completion": {"prompt": "prompt", "response": "completion", "tools": "tools", "chosen": "chosen", "rejected": "rejected"},
}  # fmt: skip
MEDIA = ("images", "videos", "audios")
SINGLE_MEDIA = ("image", "video", "audio")  # as other tools name such columns


def parts_of(format: str, columns: Names) -> dict[str, str]:
    """Part to column. What the data set says is all that is read."""
    return columns or PARTS[format]


def asked_and_said(place: str, record: Columns, format: str, columns: Names, tags: Names) -> list[Message]:
    """The messages before the column that holds the answer (all of them, where answers are in the conversation)."""
    if format == "alpaca":
        return alpaca(place, record, parts_of(format, columns))
    if format == "completion":
        return completion(place, record, parts_of(format, columns), tags)
    return conversation(place, record, format, columns, tags)


def alpaca(place: str, record: Columns, parts: dict[str, str]) -> list[Message]:
    """System, history, and the user's turn: instruction and input joined by a newline."""
    if "prompt" not in parts:
        raise BadRow(place, f"the data set's columns name no prompt, which alpaca needs; got {listed(parts)}.")
    required(place, record, "alpaca", [parts["prompt"]])
    messages = system(place, parts, record)
    for question, answer in _history(place, optional(record, parts.get("history"))):
        messages += [Message("user", content(place, "history", question)), assistant(place, "history", answer)]
    question, further = record[parts["prompt"]], optional(record, parts.get("query"))
    if further:
        further = content(place, parts["query"], further)
        question = f"{content(place, parts['prompt'], question)}\n{further}" if question else further
    messages.append(Message("user", content(place, parts["prompt"], question)))
    return messages


def _history(place: str, value: Any) -> list[list]:
    if not value:
        return []
    for turn in value if isinstance(value, list) else [value]:
        if not isinstance(turn, list) or len(turn) != 2:
            raise BadRow(place, f"history must be a list of [question, answer] pairs; got {short(turn)}.")
    return value


def conversation(place: str, record: Columns, format: str, columns: Names, tags: Names) -> list[Message]:
    """A list of messages: sharegpt's (from, value) or openai's (role, content), or as ``tags`` has it."""
    column = columns.get("messages") if columns else None
    if column is None:
        presumed = ("messages", "conversations") if format == "openai" else ("conversations", "messages")
        column = presumed[0] if presumed[0] in record or presumed[1] not in record else presumed[1]
    if column not in record:
        required(place, record, format, [column])
    said = messages_of(place, column, record[column], spelling(format, tags))
    before = system(place, parts_of(format, columns), record)
    if before and said and said[0].role == "system":
        if said[0] != before[0]:
            raise BadRow(place, "there are two system texts: a column, and the first message, which says something else.")
        return said
    return before + said


def completion(place: str, record: Columns, parts: dict[str, str], tags: Names) -> list[Message]:
    """The prompt: plain text, which is the user's, or messages."""
    if "prompt" not in parts:
        raise BadRow(place, f"the data set's columns name no prompt, which completion needs; got {listed(parts)}.")
    column = parts["prompt"]
    required(place, record, "completion", [column])
    given = record[column]
    if not isinstance(given, list):
        return [*system(place, parts, record), Message("user", content(place, column, given))]
    return system(place, parts, record) + messages_of(place, column, given, spelling_of(given, tags))


def answers_of(place: str, column: str, given: Any, tags: Names) -> list[Message]:
    """A column of one answer: plain text, a message, or a list of messages."""
    if isinstance(given, dict):
        given = [given]
    if not isinstance(given, list):
        return [assistant(place, column, given)]
    if not given:
        raise BadRow(place, f"{column} is empty.")
    spelled: Spelling = spelling_of(given, tags)
    return messages_of(place, column, given, spelled)


def system(place: str, parts: dict[str, str], record: Columns) -> list[Message]:
    """The system column's text as a message, where there is one."""
    value = optional(record, parts.get("system"))
    return [Message("system", content(place, "system", value))] if value else []


def tools_of(place: str, format: str, columns: Names, record: Columns) -> tuple[dict[str, Any], ...]:
    """The tools column."""
    column = parts_of(format, columns).get("tools")
    given = record.get(column) if column else None
    return tools(place, column or "tools", given) if given else ()


def refuse_media(place: str, record: Columns, columns: Names) -> None:
    """Pictures and the like: what the text says about them could not be learned from the text."""
    for part in MEDIA if columns else (*MEDIA, *SINGLE_MEDIA):
        column = columns.get(part) if columns else part
        if column and record.get(column):
            raise BadRow(place, f"the row brings {part} (column {column}); the model reads text only.\nRemove such rows.")
