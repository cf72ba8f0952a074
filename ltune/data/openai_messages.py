"""Our messages and tools as chat templates know them: OpenAI's, as transformers passes them on."""

import json
from collections import deque
from collections.abc import Sequence
from typing import Any

from ltune.data.rows import Message

# For templates that have no place of their own for reasoning: as DeepSeek-R1 and most others write it
THINK = ("<think>\n", "\n</think>\n\n")


def to_openai(messages: Sequence[Message], knows_reasoning: bool) -> list[dict[str, Any]]:
    """The messages. A call and its result share a made-up id, as some templates ask for one.

    Args:
        messages: Ours.
        knows_reasoning: Whether the template has a place for reasoning; else it stands before the content.
    """
    made: list[dict[str, Any]] = []
    waiting: deque[tuple[str, str]] = deque()  # (id, name) of calls without a result
    calls = 0
    for message in messages:
        if message.role == "tool":
            id, name = waiting.popleft() if waiting else (_id(calls), "")
            made.append({"role": "tool", "content": message.content, "name": name, "tool_call_id": id})
            continue
        one: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.reasoning:
            reasoning = message.reasoning.strip("\r\n")
            if knows_reasoning:
                one |= {"reasoning_content": reasoning, "thinking": reasoning}
            else:
                one["content"] = THINK[0] + reasoning + THINK[1] + message.content
        if message.tool_calls:
            waiting.clear()
            one["tool_calls"] = []
            for call in message.tool_calls:
                waiting.append((_id(calls), call.name))
                one["tool_calls"].append(
                    {"id": _id(calls), "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                )
                calls += 1
        made.append(one)
    return made


def with_text_arguments(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same, with the arguments of calls as JSON text."""
    made = []
    for message in messages:
        calls = [
            one | {"function": one["function"] | {"arguments": _json(one["function"]["arguments"])}}
            for one in message.get("tool_calls", [])
        ]
        made.append(message | {"tool_calls": calls} if calls else message)
    return made


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _id(number: int) -> str:
    return f"call{number:05}"  # nine letters or digits: Mistral's templates refuse others


def wrapped(tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """Tools as OpenAI writes them; None where there are none."""
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools] or None
