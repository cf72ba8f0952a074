"""From a record, as a file has it, to a row. One function a format: alpaca, conversation (sharegpt and openai), text.

``columns`` and ``tags`` are LLaMA-Factory's: ``columns`` says which column plays which part, and where it is given it says all
(a column that it does not name is not read); ``tags`` says how the messages of a conversation are written.
"""

from typing import Any

from ltune.data.rows import Chat, Message, Row, Text
from ltune.errors import UsageError

FORMATS = ("alpaca", "sharegpt", "openai", "text")
ALPACA_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "system": "system", "history": "history"}
CHAT_COLUMNS = {"system": "system", "tools": "tools"}  # besides "messages"
SHAREGPT_TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "system_tag": "system",
    "function_tag": "function_call",
    "observation_tag": "observation",
}
OPENAI_TAGS = SHAREGPT_TAGS | {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
TOOL_ROLES = ("tool", "function", "function_call", "observation", "ipython")
NEEDS = (
    "alpaca needs instruction and output; sharegpt: conversations; openai: messages; text: text.\n"
    "Rename the columns, or say which is which with the data set's format, columns and tags."
)

Record = dict[str, Any]
Names = dict[str, str] | None


def to_row(place: str, record: Record, format: str | None, columns: Names, tags: Names, rows: type[Row], *, answered: bool = True) -> Row:
    """The record as a row of the kind ``rows``, Chat or Text; where ``format`` is None its columns tell.

    Args:
        place: For messages: where the record came from.
        record: Column to value.
        format: One of FORMATS, or None.
        columns: prompt, query, response, history, messages, system, tools: the column that plays this part.
        tags: role_tag, content_tag, user_tag, assistant_tag, observation_tag, function_tag, system_tag.
        rows: What the objective trains on.
        answered: Whether a conversation must end with an answer.

    Raises:
        UsageError: Columns that fit no format, another kind of row than asked for, roles out of order, empty or non-text content.
    """
    found = format or detect(place, record, columns, tags, rows)
    if found not in FORMATS:
        raise UsageError(f"{place}: the data set's format is {found}; there are {', '.join(FORMATS)}.")
    if issubclass(rows, Text):
        if found in ("sharegpt", "openai") or (found == "alpaca" and not columns):
            raise UsageError(
                f"{place}: the data set has conversations ({found}), the objective trains on plain text.\n"
                "Use  --model.objective SFT , or a data set with a text column."
            )
        return text(place, record, columns)
    assert issubclass(rows, Chat), rows
    if found == "text":
        raise UsageError(
            f"{place}: the data set has plain text, the objective trains on conversations.\n"
            "Use  --model.objective Pretrain , or a data set of conversations."
        )
    if found == "alpaca":
        return alpaca(place, record, columns, answered)
    return conversation(place, record, columns, tags, found, answered)


def detect(place: str, record: Record, columns: Names, tags: Names, rows: type[Row]) -> str:
    """The format that the columns have. A column ``text`` beside a conversation counts only where text is asked for."""
    if columns:
        if "messages" in columns or tags:
            return _chat_format(record.get(columns.get("messages", "")), tags)
        return "alpaca" if "response" in columns and not issubclass(rows, Text) else "text"
    if "text" in record and issubclass(rows, Text):
        return "text"
    if "conversations" in record or "messages" in record:
        return _chat_format(record.get("conversations", record.get("messages")), tags)
    if "instruction" in record:
        return "alpaca"
    if "text" in record:
        return "text"
    raise UsageError(f"{place}: no known format has the columns {_listed(record)}.\n{NEEDS}")


def _chat_format(messages: Any, tags: Names) -> str:
    if tags or not isinstance(messages, list) or not messages or not isinstance(messages[0], dict):
        return "sharegpt"
    return "openai" if "role" in messages[0] else "sharegpt"


# -- one function a format ------------------------------------------------------------------------------------------------------------


def text(place: str, record: Record, columns: Names) -> Text:
    """A column of plain text: ``text``, or the one that plays the part of the prompt."""
    column = (columns or {}).get("prompt", "text")
    _require(place, record, "text", [column])
    return Text(place, _content(place, column, record[column]))


def alpaca(place: str, record: Record, columns: Names, answered: bool = True) -> Chat:
    """instruction, input, output, system, history. The user turn is instruction and input joined by a newline; history stands before it."""
    parts = columns or ALPACA_COLUMNS
    missing = [part for part in ("prompt", "response") if part not in parts and (answered or part == "prompt")]
    if missing:
        raise UsageError(f"{place}: the data set's columns name no {' and no '.join(missing)}, which alpaca needs; got {_listed(parts)}.")
    _require(place, record, "alpaca", [parts["prompt"], *([parts["response"]] if answered else [])])
    messages = _system(place, parts, record)
    for turn in _optional(record, parts.get("history")) or []:
        if not isinstance(turn, list) or len(turn) != 2:
            raise UsageError(f"{place}: history must be a list of [question, answer] pairs; got {_short(turn)}.")
        messages.append(Message("user", _content(place, "history", turn[0])))
        messages.append(Message("assistant", _content(place, "history", turn[1], empty=True)))
    asked = [value for part in ("prompt", "query") if (value := _optional(record, parts.get(part)))]
    question = [_content(place, "instruction or input", value) for value in asked]
    messages.append(Message("user", _content(place, parts["prompt"], "\n".join(question))))
    answer = record.get(parts.get("response", ""))
    if answered or answer:
        messages.append(Message("assistant", _content(place, parts["response"], answer, empty=True)))
    return _ordered(place, messages, answered)


def conversation(place: str, record: Record, columns: Names, tags: Names, format: str = "sharegpt", answered: bool = True) -> Chat:
    """A list of messages: sharegpt's (from, value) or openai's (role, content), or as ``tags`` has it."""
    column = (columns or {}).get("messages") or next((name for name in ("conversations", "messages") if name in record), "")
    parts = columns or CHAT_COLUMNS
    _require(place, record, format, [column or ("messages" if format == "openai" else "conversations")])
    if _optional(record, parts.get("tools")):
        raise UsageError(f"{place}: the row brings tools; ltune cannot train on tool calls yet.\nRemove such rows.")
    if not isinstance(record[column], list):
        raise UsageError(f"{place}: {column} must be a list of messages; got {_short(record[column])}.")
    names = (OPENAI_TAGS if format == "openai" else SHAREGPT_TAGS) | (tags or {})
    said = [_message(place, number, message, names) for number, message in enumerate(record[column], 1)]
    if said and said[0].role == "system":
        return _ordered(place, said, answered)
    return _ordered(place, [*_system(place, parts, record), *said], answered)


def _message(place: str, number: int, message: Any, tags: dict[str, str]) -> Message:
    role_tag, content_tag = tags["role_tag"], tags["content_tag"]
    if not isinstance(message, dict) or role_tag not in message or content_tag not in message:
        got = _listed(message) if isinstance(message, dict) else _short(message)
        raise UsageError(
            f"{place}: message {number} must have {role_tag} and {content_tag}; got {got}.\n"
            "Other names can be given in the data set's tags: role_tag, content_tag."
        )
    roles = {tags["user_tag"]: "user", tags["assistant_tag"]: "assistant", tags["system_tag"]: "system"}
    written = message[role_tag]
    if written in (*TOOL_ROLES, tags["function_tag"], tags["observation_tag"]) or message.get("tool_calls"):
        raise UsageError(f"{place}: message {number} is a tool call or its result; ltune cannot train on those yet.\nRemove such rows.")
    if not isinstance(written, str) or written not in roles:
        raise UsageError(
            f"{place}: message {number} has the role {_short(written)}; known are {', '.join(roles)}.\n"
            "Other names can be given in the data set's tags: user_tag, assistant_tag, system_tag."
        )
    role = roles[written]
    return Message(role, _content(place, f"message {number}", message[content_tag], empty=role == "assistant"))


# -- checks ---------------------------------------------------------------------------------------------------------------------------


def _system(place: str, parts: dict[str, str], record: Record) -> list[Message]:
    value = _optional(record, parts.get("system"))
    return [Message("system", _content(place, "system", value))] if value else []


def _optional(record: Record, column: str | None) -> Any:
    return record.get(column) if column else None


def _require(place: str, record: Record, format: str, columns: list[str]) -> None:
    missing = [column for column in columns if column not in record]
    if missing:
        raise UsageError(f"{place}: {format} needs the column {' and '.join(missing)}; the row has {_listed(record)}.\n{NEEDS}")


def _content(place: str, what: str, value: Any, empty: bool = False) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{place}: {what} must be text; got {_short(value)}.")
    if not value and not empty:
        raise UsageError(f"{place}: {what} is empty.")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise UsageError(f"{place}: {what} holds half a surrogate pair, which is no character.")
    return value


def _ordered(place: str, messages: list[Message], answered: bool) -> Chat:
    """User and assistant in turn, after at most one system message."""
    roles = [message.role for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if turns != ["user", "assistant"] * (len(turns) // 2) + ["user"] * (len(turns) % 2) or not turns:
        raise UsageError(
            f"{place}: the roles must be user, assistant, user, assistant ..., after at most one system message;\ngot {_short(roles)}."
        )
    if answered and turns[-1] != "assistant":
        raise UsageError(f"{place}: the conversation must end with the assistant; its last message is the user's.")
    return Chat(place, tuple(messages))


def _listed(names: Any) -> str:
    return ", ".join(map(str, names)) or "none"


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."
