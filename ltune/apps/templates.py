"""`ltune templates`: the chat templates there are, and what one of them makes of a conversation. It imports nothing heavy."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from ltune.data.paint import GREEN, PLAIN, in_colour, printable
from ltune.data.rows import Message, ToolCall
from ltune.data.template_files import from_path, named, names
from ltune.data.templates import MARKS, OWN, Segment, Template
from ltune.errors import UsageError

TOKENS = {"bos_token": "<BOS>", "eos_token": "<EOS>"}  # of no tokenizer in particular
TALK = (
    Message("system", "You are terse."),
    Message("user", "What is the weather in Paris?"),
    Message("assistant", "It is sunny."),
    Message("user", "And tomorrow?"),
    Message("assistant", "Rain."),
)
TOOLS = (
    {
        "name": "forecast",
        "description": "The weather of a day to come",
        "parameters": {"type": "object", "properties": {"days": {"type": "integer", "description": "from today"}}, "required": ["days"]},
    },
)
CALL = Message("assistant", "", tool_calls=(ToolCall("forecast", {"days": 1}),))
WITH_CALL = (*TALK[:4], CALL, Message("tool", '{"sky": "rain"}'), TALK[4])


def main(argv: list[str]) -> int:
    """List, or show one. Raises UsageError for what the user can mend."""
    options = _parse(argv)
    if options.name is None and options.model is None:
        print(_table())
    else:
        _show(_of_model(options.model) if options.name is None else _of_name(options.name, _tokens(options.model)))
    return 0


class _Parser(argparse.ArgumentParser):
    """Says what is wrong without the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\nltune templates --help  lists the options")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="ltune templates",
        allow_abbrev=False,
        description="List the chat templates, or show what one makes of a conversation: what is trained is green, or between ⟦ and ⟧.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a template that the list has, or a path ending in .jinja")
    parser.add_argument("--model", metavar="MODEL", help="the tokenizer's own template; beside NAME: with this tokenizer's control tokens")
    return parser.parse_args(argv)


# -- the list -------------------------------------------------------------------------------------------------------------------------


def _table() -> str:
    rows = [("name", "file", "tools", "thinking", "default system text")]
    for name, file in names().items():
        facts = named(name).facts
        thinking = facts.thinking[0].split("\n")[0] if facts.thinking else ""
        rows.append((name, file if file != name else "", facts.tool_format, thinking, _short(facts.default_system or "")))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 50 else line[:47] + "..."


# -- one of them ----------------------------------------------------------------------------------------------------------------------


def _of_name(name: str, tokens: dict[str, str]) -> Template:
    file = from_path(Path(name).expanduser()) if name.endswith(".jinja") else named(name)
    return Template(name, file.source, tokens, file.facts.default_system, file.facts.stop_words)


def _of_model(model: str) -> Template:
    folder = _folder(model)
    settings = _settings(folder)
    source = _jinja(folder) or settings.get("chat_template")
    if isinstance(source, list):  # named ones, as older models have them
        source = next((one.get("template") for one in source if one.get("name") == "default"), None)
    if not isinstance(source, str):
        raise UsageError(f"model: the tokenizer of {model} has no chat template.\nChoose one that  ltune templates  lists.")
    return Template(OWN, source, _special(settings))


def _tokens(model: str | None) -> dict[str, str]:
    return TOKENS if model is None else _special(_settings(_folder(model)))


def _folder(model: str) -> Path:
    """The model's folder, or its snapshot in the hub's cache."""
    from ltune.models.tokenizer import resolve_model

    found = Path(resolve_model(model))
    if found.is_dir():
        return found
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(model, allow_patterns=["tokenizer_config.json", "chat_template.jinja"]))
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        first = str(error).splitlines()[0][:300]
        raise UsageError(f"model: cannot get the tokenizer's settings of {model}.\n{first}\nGive a folder, or a hub id.") from error


def _settings(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"model: cannot read {folder / 'tokenizer_config.json'}: {error}") from error


def _jinja(folder: Path) -> str | None:
    file = folder / "chat_template.jinja"
    return file.read_text(encoding="utf-8") if file.is_file() else None


def _special(settings: dict[str, Any]) -> dict[str, str]:
    found = {name: settings.get(name) for name in TOKENS}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in found.items()}
    return {name: value for name, value in texts.items() if isinstance(value, str)}


def _show(template: Template) -> None:
    print(_painted(_rendered(template), in_colour(sys.stdout)))
    if not MARKS.search(template.source):
        print("no {% generation %} marks: what is trained is told by prefix difference", file=sys.stderr)


def _rendered(template: Template) -> list[Segment]:
    """With a system text and a tool call, as far as the template has a place for them."""
    problems = []
    for messages, tools in ((WITH_CALL, TOOLS), (WITH_CALL[1:], TOOLS), (TALK, ()), (TALK[1:], ())):
        # The latter for those that write earlier answers anew
        for tried in (template, replace(template, reasoning="drop_history")):
            try:
                return tried.render(messages, tools=tools)
            except UsageError as error:
                problems.append(error)
    raise problems[-1]


def _painted(segments: list[Segment], coloured: bool) -> str:
    begin, end = (GREEN, PLAIN) if coloured else ("⟦", "⟧")
    pairs = ((printable(segment.text), segment.trained) for segment in segments)
    return "".join(f"{begin}{text}{end}" if trained else text for text, trained in pairs)
