"""The named templates: one ``.jinja`` file each in templates/, or a name in aliases.yaml that shares one.

A file begins with a comment that is YAML, its facts: ``stop_words``, ``default_system``, ``tool_format``, ``thinking`` and
``no_thinking``. What it then needs of parts/ and tools/ is put behind that comment, so that the whole is one text that renders the same
wherever it is saved. It refuses to know tokenizers.
"""

import difflib
import json
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ltune.errors import UsageError

FOLDER = Path(__file__).parent / "templates"
HEADER = re.compile(r"\s*\{#-?(.*?)-?#\}\n?", re.DOTALL)
LARGEST = 1 << 20  # bytes of a template file; the longest known ones have 20 thousand


@dataclass(frozen=True)
class Facts:
    """What a template says of itself.

    Args:
        default_system: The system text that it puts where there is none.
        stop_words: Texts that end an answer.
        tool_format: The file in tools/ that says how it writes tools and their calls.
        thinking: What stands before and after the reasoning; empty where it has no place for any.
        no_thinking: What stands there for an answer without reasoning; null: ``thinking`` around nothing.
    """

    default_system: str | None = None
    stop_words: tuple[str, ...] = ()
    tool_format: str = "default"
    thinking: tuple[str, ...] = ()
    no_thinking: str | None = None


@dataclass(frozen=True)
class TemplateFile:
    """A template as it is rendered and saved, and its facts. ``file`` is the name of the one that an alias shares."""

    name: str
    source: str
    facts: Facts
    file: str


@cache
def names() -> dict[str, str]:
    """The built-in names in alphabetical order, and the file of each."""
    own = {path.stem: path.stem for path in FOLDER.glob("*.jinja")}
    return dict(sorted((own | {name: alias["file"] for name, alias in _aliases().items()}).items()))


@cache
def _aliases() -> dict[str, dict[str, Any]]:
    aliases = yaml.safe_load((FOLDER / "aliases.yaml").read_text(encoding="utf-8"))
    return {name: {"file": alias} if isinstance(alias, str) else alias for name, alias in aliases.items()}


def named(name: str, drops_history: bool = False) -> TemplateFile:
    """The built-in template of that name.

    Args:
        name: As ``names`` has it.
        drops_history: Whether a thinking one is to write answers before the last question without reasoning.

    Raises:
        UsageError: There is none.
    """
    if name not in names():
        raise UsageError(f"data.template: there is no template {name}.\n{suggestion(name)}")
    file = names()[name]
    source = (FOLDER / f"{file}.jinja").read_text(encoding="utf-8")
    header = HEADER.match(source)
    assert header, f"{file}.jinja begins with its facts"
    overrides = {key: value for key, value in _aliases().get(name, {}).items() if key != "file"}
    facts = _facts(header.group(1), file, overrides)
    return TemplateFile(name, _written(facts) + _parts(facts, drops_history) + source[header.end() :], facts, file)


def suggestion(name: str) -> str:
    """One line: what may have been meant, and where to look."""
    near = difflib.get_close_matches(name, names(), 1)
    return (f"Did you mean {near[0]}?  " if near else "") + "ltune templates  lists them; a path ending in .jinja is one of your own."


def from_path(path: Path, drops_history: bool = False) -> TemplateFile:
    """A template in a file; the comment with its facts may be missing.

    Args:
        path: The file.
        drops_history: As for ``named``; one that was saved stays as it is.

    Raises:
        UsageError: No such file, too large, not UTF-8, facts that are not YAML.
    """
    try:
        if not path.is_file():
            near = difflib.get_close_matches(path.name, [other.name for other in path.parent.glob("*.jinja")], 1)
            hint = f"Did you mean {path.parent / near[0]}?" if near else f"Looked from {Path.cwd()}"
            raise UsageError(f"data.template: there is no file {path}.\n{hint}")
        if path.stat().st_size > LARGEST:
            raise UsageError(f"data.template: {path} has {path.stat().st_size:,} bytes; a chat template has a few thousand.")
        source = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"data.template: {path} is not UTF-8 text: {error}.") from error
    except OSError as error:
        raise UsageError(f"data.template: {path} cannot be read: {error.strerror or error}.") from error
    # A comment that is not ours, as a template from elsewhere may begin with, says nothing
    header = HEADER.match(source)
    if not header or not re.match(rf"\s*({'|'.join(Facts.__dataclass_fields__)}):", header.group(1)):
        return TemplateFile(str(path), source, Facts(), str(path))
    facts = _facts(header.group(1), str(path), {})
    rest = source[header.end() :]
    if not any(rest.startswith(_parts(facts, drops)) for drops in (False, True)):  # one that was saved has all that it needs
        source = source[: header.end()] + _parts(facts, drops_history) + rest
    return TemplateFile(str(path), source, facts, str(path))


def _facts(header: str, name: str, overrides: dict[str, Any]) -> Facts:
    try:
        found = yaml.safe_load(header) | overrides
    except yaml.YAMLError as error:
        raise UsageError(f"data.template: {name}: the comment at its beginning is not YAML: {str(error).splitlines()[0]}") from error
    known = Facts.__dataclass_fields__
    if unknown := [key for key in found if key not in known]:
        near = difflib.get_close_matches(str(unknown[0]), known, 1)
        raise UsageError(
            f"data.template: {name}: the comment at its beginning has {unknown[0]}; known are {', '.join(known)}."
            + (f"\nDid you mean {near[0]}?" if near else "")
        )
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
    facts = Facts(**{key: value for key, value in values.items() if value is not None})
    _check(facts, name)
    return facts if facts.no_thinking is not None or not facts.thinking else replace(facts, no_thinking="".join(facts.thinking))


def _check(facts: Facts, name: str) -> None:
    formats = tool_formats()
    problems = {
        "default_system must be text": facts.default_system is None or isinstance(facts.default_system, str),
        "stop_words must be a list of texts": isinstance(facts.stop_words, tuple) and all(isinstance(w, str) for w in facts.stop_words),
        f"tool_format must be one of {', '.join(formats)}": facts.tool_format in formats,
        "thinking must be two texts, what stands before and after": facts.thinking == ()
        or (isinstance(facts.thinking, tuple) and [type(word) for word in facts.thinking] == [str, str]),
        "no_thinking must be text": facts.no_thinking is None or isinstance(facts.no_thinking, str),
    }
    if wrong := next((problem for problem, right in problems.items() if not right), None):
        raise UsageError(f"data.template: {name}: {wrong}, in the comment at its beginning.")


@cache
def tool_formats() -> list[str]:
    """How tools and their calls can be written."""
    return sorted(path.stem for path in (FOLDER / "tools").glob("*.jinja"))


# -- one text -------------------------------------------------------------------------------------------------------------------------


def _written(facts: Facts) -> str:
    """The comment that holds these facts."""
    default = Facts()
    said = {name: getattr(facts, name) for name in Facts.__dataclass_fields__ if getattr(facts, name) != getattr(default, name)}
    lines = [f"{name}: {_literal(value)}" for name, value in ({"stop_words": facts.stop_words} | said).items()]
    return "\n".join(["{#-", *lines, "-#}"]) + "\n"


def _parts(facts: Facts, drops_history: bool) -> str:
    """What a template takes for granted: its facts as variables, and the macros of its tool format."""
    lines = [f"{{%- set default_system = {_literal(facts.default_system or '')} -%}}\n"]
    if facts.thinking:
        lines += [f"{{%- set {name} = {_literal(getattr(facts, name))} -%}}\n" for name in ("thinking", "no_thinking")]
        lines.append(_part("parts/thinking_last" if drops_history else "parts/thinking"))
    return "".join([*lines, _part(f"tools/{facts.tool_format}"), _part("parts/opening")])


@cache
def _part(name: str) -> str:
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


def _literal(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
