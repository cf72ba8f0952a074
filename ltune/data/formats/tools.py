"""Tool calls and the tools that a row may call, as text or as objects, in the ways the field writes them."""

from typing import Any

from ltune.data.formats.values import from_json, short
from ltune.data.rows import BadRow, ToolCall


def calls_in_text(place: str, what: str, text: Any) -> tuple[ToolCall, ...]:
    """sharegpt's: the message is JSON, {"name": ..., "arguments": {...}} or a list of them."""
    found = from_json(place, f"{what}, a tool call", text)
    return _calls(place, what, found if isinstance(found, list) else [found])


def calls(place: str, what: str, given: Any) -> tuple[ToolCall, ...]:
    """openai's ``tool_calls``: [{"type": "function", "function": {"name": ..., "arguments": JSON text or object}}]."""
    found = from_json(place, f"{what}: tool_calls", given)
    if not isinstance(found, list):
        raise BadRow(place, f"{what}: tool_calls must be a list; got {short(found)}.")
    return _calls(place, what, found)


def _calls(place: str, what: str, given: list) -> tuple[ToolCall, ...]:
    if not given:
        raise BadRow(place, f"{what} calls no tool; a list of calls must hold one.")
    return tuple(_call(place, what, one) for one in given)


def _call(place: str, what: str, given: Any) -> ToolCall:
    call = given["function"] if isinstance(given, dict) and isinstance(given.get("function"), dict) else given
    name = call.get("name") if isinstance(call, dict) else None
    if not isinstance(name, str) or not name:
        raise BadRow(place, f'{what}: a tool call is {{"name": ..., "arguments": {{...}}}}; got {short(given)}.')
    arguments = from_json(place, f"{what}: the arguments of {name}", call.get("arguments") or {})
    if not isinstance(arguments, dict):
        raise BadRow(place, f"{what}: the arguments of {name} must be an object; got {short(arguments)}.")
    return ToolCall(name, arguments)


def tools(place: str, column: str, given: Any) -> tuple[dict[str, Any], ...]:
    """The tools that the row may call: a list of schemas, or JSON text of one; {"type": "function", "function": {...}} is unwrapped."""
    if not given or (isinstance(given, str) and not given.strip()):
        return ()
    found = from_json(place, column, given)
    if not isinstance(found, list):
        raise BadRow(place, f"{column} must be a list of tools; got {short(found)}.")
    return tuple(_tool(place, column, from_json(place, f"a tool in {column}", one)) for one in found)


def _tool(place: str, column: str, given: Any) -> dict[str, Any]:
    tool = given["function"] if isinstance(given, dict) and isinstance(given.get("function"), dict) else given
    if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
        raise BadRow(place, f'{column}: a tool is {{"name": ..., "description": ..., "parameters": {{...}}}}; got {short(given)}.')
    return tool
