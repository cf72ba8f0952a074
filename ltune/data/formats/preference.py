"""Two answers to one question (``Pair``), and an answer that is good or bad (``Rated``)."""

from typing import Any

from ltune.data.formats.conversations import answers_of, asked_and_said, parts_of, tools_of
from ltune.data.formats.messages import Message, ordered
from ltune.data.formats.values import Columns, Names, content, listed, required, short
from ltune.data.rows import BadRow, Pair, Rated

QUESTION = ("user", "tool")  # what an answer may follow
TRUTH = {"true": True, "false": False, "1": True, "0": False}


def pair(place: str, record: Columns, format: str, columns: Names, tags: Names) -> Pair:
    """chosen and rejected: text, a message, or messages; with a conversation or a prompt before them, or each with its own copy of it."""
    parts = parts_of(format, columns)
    if "chosen" not in parts or "rejected" not in parts:
        raise BadRow(place, f"the objective trains on pairs, and the data set's columns name no chosen and rejected; got {listed(parts)}.")
    required(place, record, "a pair", [parts["chosen"], parts["rejected"]])
    given = [record[parts[part]] for part in ("chosen", "rejected")]
    if format == "completion" and not record.get(parts.get("prompt", "")):
        before, answers = _common(place, given, tags)
    else:
        before = asked_and_said(place, record, format, columns, tags)
        said = (answers_of(place, parts[part], one, tags) for part, one in zip(("chosen", "rejected"), given, strict=True))
        answers = [_last(place, parts[part], messages, before) for part, messages in zip(("chosen", "rejected"), said, strict=True)]
    return Pair(place, ordered(place, before, QUESTION), answers[0], answers[1], tools_of(place, format, columns, record))


def _common(place: str, given: list[Any], tags: Names) -> tuple[list[Message], list[Message]]:
    """The question that both answers repeat, and the answers."""
    if all(isinstance(one, str) for one in given):
        return _common_text(place, *given)
    chosen, rejected = (answers_of(place, what, one, tags) for what, one in zip(("chosen", "rejected"), given, strict=True))
    before = chosen[:-1]
    if not before or before != rejected[:-1]:
        raise BadRow(place, "chosen and rejected must be the same conversation up to the last message, or a prompt must stand before them.")
    return before, [_last(place, "chosen", chosen[-1:], []), _last(place, "rejected", rejected[-1:], [])]


def _common_text(place: str, chosen: str, rejected: str) -> tuple[list[Message], list[Message]]:
    """Plain text without a prompt: what both begin with, up to a white space, is the question."""
    equal = next(
        (at for at, (one, other) in enumerate(zip(chosen, rejected, strict=False)) if one != other), min(len(chosen), len(rejected))
    )
    while equal and not chosen[equal - 1].isspace():
        equal -= 1
    asked = chosen[:equal].rstrip()
    if not asked:
        raise BadRow(place, "there is no prompt, and chosen and rejected do not begin with the same words.\nAdd a column prompt.")
    answers = [Message("assistant", content(place, "an answer", text[len(asked) :].lstrip(), empty=True)) for text in (chosen, rejected)]
    return [Message("user", content(place, "the prompt", asked))], answers


def _last(place: str, column: str, messages: list[Message], before: list[Message]) -> Message:
    """The one answer; a copy of the conversation before it is passed over."""
    if len(messages) > 1 and messages[:-1] in (before, before[1:]):
        messages = messages[-1:]
    if len(messages) != 1 or messages[0].role != "assistant":
        raise BadRow(place, f"{column} must be one answer of the assistant; got {short([message.role for message in messages])}.")
    return messages[0]


def rated(place: str, record: Columns, format: str, columns: Names, tags: Names) -> Rated:
    """An answer and its mark: kto_tag, label. The answer is a column, or the conversation's last message."""
    parts = parts_of(format, columns)
    column = parts.get("kto_tag") if columns else next((name for name in ("kto_tag", "label") if name in record), "label")
    if column is None:
        raise BadRow(place, f"the objective trains on rated answers, and the data set's columns name no kto_tag; got {listed(parts)}.")
    required(place, record, "a rated answer", [column])
    messages = asked_and_said(place, record, format, columns, tags)
    if format in ("alpaca", "completion"):
        if "response" not in parts:
            raise BadRow(place, f"the data set's columns name no response, which {format} needs; got {listed(parts)}.")
        required(place, record, format, [parts["response"]])
        answer = _last(place, parts["response"], answers_of(place, parts["response"], record[parts["response"]], tags), messages)
    else:
        ordered(place, messages, ("assistant", "calls"))
        *messages, answer = messages
    good = _mark(place, column, record[column])
    return Rated(place, ordered(place, messages, QUESTION), answer, good, tools_of(place, format, columns, record))


def _mark(place: str, column: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if str(value).lower() not in TRUTH:
        raise BadRow(place, f"{column} must be true or false; got {short(value)}.")
    return TRUTH[str(value).lower()]
