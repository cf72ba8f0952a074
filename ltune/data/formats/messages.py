"""Messages as the field writes them, to ours: roles by their tags, reasoning, tool calls, and the order of roles."""

from functools import lru_cache
from typing import Any, NamedTuple

from ltune.data.formats.tools import calls, calls_in_text
from ltune.data.formats.values import content, listed, short
from ltune.data.rows import BadRow, Message, ToolCall

SHAREGPT_TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "system_tag": "system",
    "function_tag": "function_call",
    "observation_tag": "observation",
}
OPENAI_TAGS = SHAREGPT_TAGS | {
    "role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant", "observation_tag": "tool",
}  # fmt: skip
CALL = "call"  # the role of an assistant's message whose text is a tool call
ALIASES = {"tool": "tool", "function": "tool", "observation": "tool", "ipython": "tool", "function_call": CALL, "developer": "system"}
OPEN, CLOSE = "<think>", "</think>"

# What may follow; "calls" is an assistant that calls tools
FOLLOW = {
    "": ("system", "user"),
    "system": ("user",),
    "user": ("assistant", "calls"),
    "assistant": ("user",),
    "calls": ("tool",),
    "tool": ("tool", "assistant", "calls"),
}


class Spelling(NamedTuple):
    """How messages are written: the keys of role and content, and what a role as written means."""

    role: str
    content: str
    roles: dict[str, str]


def _spelling(tags: dict[str, str]) -> Spelling:
    named = {
        tags["user_tag"]: "user", tags["assistant_tag"]: "assistant", tags["system_tag"]: "system",
        tags["observation_tag"]: "tool", tags["function_tag"]: CALL,
    }  # fmt: skip
    return Spelling(tags["role_tag"], tags["content_tag"], ALIASES | named)


SHAREGPT, OPENAI = _spelling(SHAREGPT_TAGS), _spelling(OPENAI_TAGS)


def spelling(format: str, tags: dict[str, str] | None) -> Spelling:
    """Of a format, sharegpt or openai, with the data set's own tags."""
    if not tags:
        return OPENAI if format == "openai" else SHAREGPT
    return _spelling((OPENAI_TAGS if format == "openai" else SHAREGPT_TAGS) | tags)


def spelling_of(value: Any, tags: dict[str, str] | None) -> Spelling:
    """Of a list of messages (or one), by the keys of its first."""
    return spelling(written_as(value, tags), tags)


def written_as(value: Any, tags: dict[str, str] | None, otherwise: str = "sharegpt") -> str:
    """openai or sharegpt; with tags, sharegpt's are the ones that fill in what the tags leave out."""
    first = value[0] if isinstance(value, list) and value else value
    if tags or not isinstance(first, dict):
        return "sharegpt" if tags else otherwise
    return "openai" if "role" in first else "sharegpt" if "from" in first else otherwise


# -- one message ----------------------------------------------------------------------------------------------------------------------


MESSAGE = [f"message {number}" for number in range(1000)]  # making a name takes longer than finding it


def messages_of(place: str, column: str, value: Any, spelled: Spelling) -> list[Message]:
    """A column's list of messages."""
    if type(value) is not list:
        raise BadRow(place, f"{column} must be a list of messages; got {short(value)}.")
    if not value:
        raise BadRow(place, f"{column} is empty: it has no messages.")
    names = MESSAGE if len(value) < len(MESSAGE) else [f"message {number}" for number in range(len(value) + 1)]
    return [message(place, names[number], given, spelled) for number, given in enumerate(value, 1)]


def message(place: str, what: str, given: Any, spelled: Spelling) -> Message:
    """One message."""
    if type(given) is not dict or spelled.role not in given:
        raise _not_a_message(place, what, given, spelled)
    written = given[spelled.role]
    role = spelled.roles.get(written) if type(written) is str else None
    if role is None:
        raise BadRow(
            place,
            f"{what} has the role {short(written)}; known are {', '.join(name for name in spelled.roles if name not in ALIASES)}.\n"
            "Other names can be given in the data set's tags: user_tag, assistant_tag, system_tag, function_tag, observation_tag.",
        )
    text = given.get(spelled.content)
    reasoning, called = _extras(place, what, given, role) if len(given) > 2 or text is None else (None, ())
    if text is None:
        if not called and spelled.content not in given:
            raise _not_a_message(place, what, given, spelled)
        text = "" if called else None
    elif type(text) is list:
        text = _only_text(place, what, text)
    if role == "assistant":
        return assistant(place, what, text, reasoning, called)
    if role == CALL:
        return Message("assistant", "", reasoning, calls_in_text(place, what, content(place, what, text)))
    return Message(role, content(place, what, text, empty=role == "tool"))


def assistant(place: str, what: str, text: Any, reasoning: str | None = None, called: tuple[ToolCall, ...] = ()) -> Message:
    """An answer; what stands between <think> and </think> at its beginning is its reasoning."""
    said = content(place, what, text, empty=True)
    if said.startswith(OPEN) and CLOSE in said:
        if reasoning is not None:
            raise BadRow(place, f"{what} has its reasoning twice: in the content, and beside it.")
        reasoning, said = said[len(OPEN) :].split(CLOSE, 1)
        reasoning, said = reasoning.strip("\r\n"), said.lstrip("\r\n")
    return Message("assistant", said, reasoning, called) if called or reasoning is not None else Message("assistant", said)


def _extras(place: str, what: str, given: dict[str, Any], role: str) -> tuple[str | None, tuple[ToolCall, ...]]:
    """Reasoning and tool calls; what would change the training and cannot be had is refused."""
    reasoning = next((given[key] for key in ("reasoning_content", "thinking") if given.get(key) is not None), None)
    called = given.get("tool_calls") or given.get("function_call")
    if (called or reasoning) and role not in ("assistant", CALL):
        raise BadRow(place, f"{what} is the {role}'s; only the assistant's has {'tool calls' if called else 'reasoning'}.")
    if given.get("weight") is not None and given["weight"] != 1:
        raise BadRow(
            place,
            f"{what} has weight {short(given['weight'])}; messages cannot be weighted one by one.\n"
            "Remove the weights; with  data.train_on: last  only the last answer is trained.",
        )
    for key in ("images", "image", "videos", "audios", "audio"):
        if given.get(key):
            raise BadRow(place, f"{what} brings {key}; the model reads text only.\nRemove such rows.")
    found = None if reasoning is None else content(place, f"{what}: reasoning", reasoning, empty=True)
    return found, calls(place, what, called if isinstance(called, list | str) else [called]) if called else ()


def _only_text(place: str, what: str, value: list) -> Any:
    """The text of openai's content parts, where that is all they are."""
    parts = [part.get("type") if isinstance(part, dict) else None for part in value]
    if other := [part for part in parts if part not in ("text", None)]:
        raise BadRow(place, f"{what} brings {listed(other)}; the model reads text only.\nRemove such rows.")
    if parts != ["text"]:
        raise BadRow(place, f"{what} must be text, or one part of type text; got {short(value)}.")
    return value[0].get("text")


def _not_a_message(place: str, what: str, given: Any, spelled: Spelling) -> BadRow:
    got = listed(given) if isinstance(given, dict) else short(given)
    return BadRow(
        place,
        f"{what} must have {spelled.role} and {spelled.content}; got {got}.\n"
        "Other names can be given in the data set's tags: role_tag, content_tag.",
    )


# -- their order ----------------------------------------------------------------------------------------------------------------------


def ordered(place: str, messages: list[Message], ends: tuple[str, ...]) -> tuple[Message, ...]:
    """The messages, if their roles follow each other as they must, and end with one of ``ends``."""
    roles = tuple(["calls" if message.tool_calls else message.role for message in messages])
    if problem := _problem(roles, ends):
        raise BadRow(place, problem)
    return tuple(messages)


@lru_cache(4096)  # a file has few different ones
def _problem(roles: tuple[str, ...], ends: tuple[str, ...]) -> str | None:
    shown = [{"calls": "assistant"}.get(role, role) for role in roles]
    before = ""
    for number, role in enumerate(roles, 1):
        if role not in FOLLOW[before]:
            if role == "system" and "system" in roles[: number - 1]:
                return f"message {number} is a second system message; a conversation has one, at its beginning."
            if role == "tool":
                return f"message {number} is a tool's result, and no tool was called before it;\ngot {short(shown)}."
            if before == "calls":
                return f"message {number} must be the result of the tool call before it;\ngot {short(shown)}."
            return (
                "the roles must be user, assistant, user, assistant ..., after at most one system message;\n"
                f"message {number} breaks this; got {short(shown)}."
            )
        before = role
    if before in ("", "system"):
        return f"the roles must be user, assistant, user, assistant ..., after at most one system message;\ngot {short(shown)}."
    if before not in ends:
        wanted = "the assistant" if "assistant" in ends else "what the assistant is to answer"
        return f"the conversation must end with {wanted}; its last message is the {shown[-1]}'s."
    return None
