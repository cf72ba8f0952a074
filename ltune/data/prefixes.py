"""What is trained of a rendered conversation, where its template does not say it, or says more than is wanted."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from ltune.data.rows import Message
from ltune.errors import UsageError

Piece = tuple[str, bool]  # text; trained


class Unpreserved(UsageError):
    """What a template wrote before an answer, or the answer itself, changes when the conversation goes on."""


def by_prefix(
    messages: Sequence[Message],
    write: Callable[[Sequence[Message], bool], str],
    add_generation_prompt: bool,
    lenient: bool,
    end_token: str | None,
    name: str,
) -> list[Piece]:
    """The pieces of a conversation, each answer being what the template adds to the text before it.

    Args:
        messages: The conversation.
        write: The text of the first messages, with or without what leads in an answer.
        add_generation_prompt: Whether the assistant is to speak next.
        lenient: Whether answers before the last question may be written otherwise than when they were said; those are not trained.
        end_token: The tokenizer's. Some templates write it at the end of every conversation, besides what ends each answer.
        name: Of the template, for messages.

    Raises:
        Unpreserved: What is trained cannot be told.
    """
    whole = write(messages, add_generation_prompt)
    asked = max((number for number, message in enumerate(messages) if message.role == "user"), default=0)
    parts: list[Piece] = []
    position = 0
    for number, message in enumerate(messages):
        if message.role != "assistant":
            continue
        last = number + 1 == len(messages) and not add_generation_prompt
        before, after = write(messages[:number], True), whole if last else write(messages[: number + 1], False)
        if not whole.startswith(after) and end_token and not after.removesuffix(end_token).endswith(message.content.rstrip()):
            after = after.removesuffix(end_token)
        if after.startswith(before) and whole.startswith(after) and len(before) >= position:
            parts += [(whole[position : len(before)], False), (whole[len(before) : len(after)], True)]
            position = len(after)
        elif not lenient or number > asked and not add_generation_prompt:
            raise _changes(name, number, *((before, after) if not after.startswith(before) else (after, whole)))
    return [*parts, (whole[position:], False)]


def _changes(name: str, number: int, early: str, late: str) -> Unpreserved:
    pairs = zip(early, late, strict=False)
    place = next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(early), len(late)))
    return Unpreserved(
        f"the chat template {name} has no {{% generation %}} marks and does not preserve prefixes: what is trained cannot be told.\n"
        f"Around message {number + 1} it writes {early[place : place + 40]!r}, and {late[place : place + 40]!r} once more follows.\n"
        "If it drops the reasoning of earlier answers:  --data.reasoning drop_history\n"
        "Or choose a named one that keeps all as it was:  --data.template NAME  (ltune templates lists them)"
    )


def masked(parts: list[Piece], messages: Sequence[Message], write: Callable[[Sequence[Message]], list[Piece]], name: str) -> list[Piece]:
    """The pieces, without training the reasoning and what stands around it in an answer before its content.

    Args:
        parts: The conversation's pieces.
        messages: The conversation.
        write: Its pieces, with other words.
        name: Of the template, for messages.

    Raises:
        UsageError: The template does not write the reasoning as it is.
    """
    numbers = [number for number, message in enumerate(messages) if message.reasoning]
    ends: dict[int, int] = {}  # of a piece: where its untrained beginning ends
    for number, (index, text) in _places(numbers, messages, write).items():
        opening, _, rest = text.partition(_sign("reasoning", number))
        between = rest.partition(_sign("content", number))[0]
        answer, reasoning = parts[index][0], messages[number].reasoning or ""
        tries = (said + between for said in (reasoning, reasoning.strip("\r\n"), reasoning.strip()))
        ends[index] = next((len(opening + said) for said in tries if answer.startswith(opening + said)), 0)
    if len(ends) < len(numbers) or not all(ends.values()):
        raise UsageError(f"the chat template {name} changes the reasoning, so it cannot be masked.\nTry  --data.reasoning keep  or drop.")
    less: list[Piece] = []
    for index, (text, trained) in enumerate(parts):
        end = ends.get(index, 0)
        less += [(text[:end], False), (text[end:], trained)] if end else [(text, trained)]
    return less


def untrained(
    parts: list[Piece], messages: Sequence[Message], numbers: Sequence[int], write: Callable[[Sequence[Message]], list[Piece]]
) -> list[Piece]:
    """The pieces, without training the answers of these numbers.

    Args:
        parts: The conversation's pieces.
        messages: The conversation.
        numbers: Of messages.
        write: Its pieces, with other words.
    """
    indices = {index for index, _ in _places(numbers, messages, write).values()}
    return [(text, trained and index not in indices) for index, (text, trained) in enumerate(parts)]


def _places(
    numbers: Sequence[int], messages: Sequence[Message], write: Callable[[Sequence[Message]], list[Piece]]
) -> dict[int, tuple[int, str]]:
    """The trained piece that each of these messages is in, and its text with signs for the message's words."""
    swapped = list(messages)
    for number in numbers:
        reasoning = _sign("reasoning", number) if messages[number].reasoning else None
        swapped[number] = replace(messages[number], content=_sign("content", number), reasoning=reasoning)
    trained = [(index, text) for index, (text, trained) in enumerate(write(swapped)) if trained]
    return {number: found for number in numbers for found in trained if _sign("content", number) in found[1]}


def _sign(what: str, number: int) -> str:
    """Words that no row has."""
    return f"\U000ffff0{what}{number}\U000ffff1"
