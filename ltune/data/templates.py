"""From messages to text, and which of it is the assistant's: the tokenizer's own chat template or a named one.

The built-in ones are the ``.jinja`` files in templates/. Each starts with a comment that is YAML: ``stop_words``, at which generation
ends, and ``default_system``. It refuses to know tokens.
"""

import difflib
import json
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml

from ltune.data.rows import Message
from ltune.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FOLDER = Path(__file__).parent / "templates"
MARKS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
HEADER = re.compile(r"\s*\{#-?(.*?)-?#\}", re.DOTALL)
# Some templates write today's date. A row must be the same tomorrow, so these see the day that Llama 3.1's falls back on.
NO_DATE = (
    "{% macro strftime_now(format) %}{{ format | replace('%Y', '2024') | replace('%m', '07') | replace('%d', '26')"
    " | replace('%B', 'July') | replace('%b', 'Jul') | replace('%A', 'Friday') }}{% endmacro %}{{ '' }}"
)
PROBE = (
    Message("user", "first question"),
    Message("assistant", "first answer"),
    Message("user", "second question"),
    Message("assistant", "second answer"),
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Segment:
    """A piece of a rendered conversation. The pieces joined are the whole of it."""

    text: str
    trained: bool  # the assistant's, its end token included


@dataclass(frozen=True)
class Template:
    """A chat template with marks around what the assistant says.

    Args:
        name: Its name, or its file, or "of the tokenizer".
        source: The Jinja text, complete: other tools render the same from it.
        tokens: bos_token, eos_token ... of the tokenizer.
        default_system: The system text that it puts where there is none.
        stop_words: Texts that end an answer.
    """

    name: str
    source: str
    tokens: dict[str, str] = field(default_factory=dict)
    default_system: str | None = None
    stop_words: tuple[str, ...] = ()

    def render(self, messages: Iterable[Message], add_generation_prompt: bool = False) -> list[Segment]:
        """The conversation in consecutive pieces, none empty; with ``add_generation_prompt`` up to where the assistant speaks.

        Raises:
            UsageError: The template refuses these messages.
        """
        rendered, spans = self._render(messages, add_generation_prompt)
        segments, position = [], 0
        for begin, end in spans:
            segments += [Segment(rendered[position:begin], False), Segment(rendered[begin:end], True)]
            position = end
        segments.append(Segment(rendered[position:], False))
        return [segment for segment in segments if segment.text]

    def _render(self, messages: Iterable[Message], add_generation_prompt: bool = False) -> tuple[str, list[tuple[int, int]]]:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        conversation = [{"role": message.role, "content": message.content} for message in messages]
        try:
            # Its annotation says str; it returns texts and, for each, the (begin, end) of what is marked
            rendered, spans = cast(Any, render_jinja_template)(
                conversations=[conversation],
                chat_template=self._dateless,
                return_assistant_tokens_mask=MARKS.search(self.source) is not None,
                add_generation_prompt=add_generation_prompt,
                **self.tokens,
            )
        except (TemplateError, TypeError, LookupError) as error:
            raise UsageError(f"the chat template {self.name} cannot render this conversation: {error}") from error
        return rendered[0], spans[0] if spans else []

    @cached_property
    def _dateless(self) -> str:
        return NO_DATE + self.source if "strftime_now" in self.source else self.source

    def stop_ids(self, tokenizer: "PreTrainedTokenizerBase") -> set[int]:
        """Tokens at which generation ends: the tokenizer's end token, the stop words that are tokens, and what ends a rendered answer."""
        vocabulary = tokenizer.get_vocab()
        words = [tokenizer.eos_token, self.end_token(tokenizer), *self.stop_words]
        return {vocabulary[word] for word in words if word is not None and word in vocabulary}

    def end_token(self, tokenizer: "PreTrainedTokenizerBase") -> str | None:
        """The control token that the template writes behind an answer, if that is one token of this tokenizer."""
        trained = [segment.text for segment in self.render(PROBE) if segment.trained][-1]
        end = trained.split(PROBE[-1].content, 1)[-1].lstrip()
        starts = [token for token in tokenizer.get_added_vocab() if end.startswith(token)]
        return max(starts, key=len, default=None)


def load_template(name: str | None, tokenizer: "PreTrainedTokenizerBase") -> Template:
    """The named template, the one in a ``.jinja`` file, or, for None, the tokenizer's own.

    Raises:
        UsageError: Unknown name, no file, a tokenizer without a template, no ``{% generation %}`` marks or marks in the wrong place.
    """
    tokens = tokenizer.special_tokens_map
    if name is None:
        template = Template("of the tokenizer", _own(tokenizer), tokens)
    elif name.endswith(".jinja"):
        template = _from_file(name, Path(name).expanduser(), tokens)
    elif name in named():
        template = _from_file(name, FOLDER / f"{name}.jinja", tokens)
    else:
        guess = difflib.get_close_matches(name, named(), 1)
        hint = f"Did you mean {guess[0]}?  " if guess else ""
        raise UsageError(f"data.template: there is no template {name}.\n{hint}Known: {', '.join(named())}, or a path ending in .jinja.")
    _check_marks(template)
    if template.end_token(tokenizer) is None:
        log.warning("template %s: what ends an answer is no token of this tokenizer; it is spelled out in ordinary tokens", template.name)
    if name in named() and tokenizer.chat_template:
        _report_mismatch(template, Template("of the tokenizer", _own(tokenizer), tokens))
    return template


def named() -> list[str]:
    """The built-in templates."""
    return sorted(path.stem for path in FOLDER.glob("*.jinja"))


def _own(tokenizer: "PreTrainedTokenizerBase") -> str:
    templates = tokenizer.chat_template
    source = templates.get("default") if isinstance(templates, dict) else templates
    if not source:
        raise UsageError(
            "data.template: null takes the tokenizer's own chat template, and this tokenizer has none.\n"
            f"Choose one:  --data.template {' | '.join(named())} | path/to/file.jinja"
        )
    return source


def _from_file(name: str, path: Path, tokens: dict[str, str]) -> Template:
    if not path.is_file():
        raise UsageError(f"data.template: there is no file {path}.")
    try:
        source = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"data.template: {path} is not UTF-8 text: {error}.") from error
    # A comment that is not ours, as a template from elsewhere may begin with, says nothing
    header = HEADER.match(source)
    facts = _facts(header.group(1)) if header else {}
    system = facts.get("default_system")
    if header and system is not None:
        line = "{%- set default_system = " + json.dumps(system, ensure_ascii=False) + " -%}"
        rest = source[header.end() :]
        # Saved with a model, the template must carry its text itself; one that was saved so has the line already
        source = source if rest.lstrip("\n").startswith(line) else source[: header.end()] + "\n" + line + rest
    return Template(name, source, tokens, system, tuple(facts.get("stop_words") or ()))


def _facts(header: str) -> dict:
    if not re.match(r"\s*(default_system|stop_words):", header):
        return {}
    try:
        return yaml.safe_load(header)
    except yaml.YAMLError as error:
        raise UsageError(f"data.template: the comment at its beginning is not YAML: {str(error).splitlines()[0]}") from error


def _check_marks(template: Template) -> None:
    if not MARKS.search(template.source):
        raise UsageError(
            f"the chat template {template.name} has no {{% generation %}} marks: it does not say what is trained.\n"
            f"Choose a named one:  --data.template {' | '.join(named())}\n"
            "or copy it to a .jinja file with {% generation %}...{% endgeneration %} around the assistant's text and end token."
        )
    trained = "".join(segment.text for segment in template.render(PROBE) if segment.trained)
    if PROBE[-1].content not in trained or "question" in trained:
        raise UsageError(
            f"the chat template {template.name}: its {{% generation %}} marks do not stand around the assistant's answer.\n"
            "They must enclose the assistant's text and its end token, outside macros."
        )


def _report_mismatch(template: Template, own: Template) -> None:
    ours = template._render(PROBE)[0]
    try:
        theirs = own._render(PROBE)[0]
    except UsageError as error:
        log.warning("%s", error)
        return
    if ours != theirs:
        log.warning(
            "template %s is not the tokenizer's own. A conversation is rendered as\n%r\nby the tokenizer's own as\n%r",
            template.name, ours, theirs,
        )  # fmt: skip
