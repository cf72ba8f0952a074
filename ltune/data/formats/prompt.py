"""What the model is to answer itself (``Prompt``): any format of conversations, or prompts alone. Other columns are kept for rewards."""

from ltune.data.formats.conversations import answers_of, asked_and_said, parts_of, tools_of
from ltune.data.formats.messages import ordered
from ltune.data.formats.values import Columns, Names
from ltune.data.rows import Prompt

ANY = ("assistant", "calls", "user", "tool")  # what a conversation may end with
CONVERSATIONS = ("messages", "conversations")
ANSWERS = ("chosen", "rejected", "kto_tag")  # parts of other kinds of rows, here columns like any other


def prompt(place: str, record: Columns, format: str, columns: Names, tags: Names) -> Prompt:
    """A conversation up to its last turn of the assistant, which is the label; or a prompt with an answer's column, or without one."""
    messages = asked_and_said(place, record, format, columns, tags)
    parts = {part: column for part, column in parts_of(format, columns).items() if part not in ANSWERS}
    if format in ("alpaca", "completion") and (given := record.get(parts.get("response", ""))):
        messages += answers_of(place, parts["response"], given, tags)
    said = ordered(place, messages, ANY)
    label = said[-1].content if said[-1].role == "assistant" else None
    asked = said[:-1] if label is not None else said
    read = {*parts.values(), *(() if format in ("alpaca", "completion") or columns else CONVERSATIONS)}
    others = {name: value for name, value in record.items() if name not in read}
    return Prompt(place, asked, tools_of(place, format, columns, record), label, others)
