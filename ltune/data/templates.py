"""The chat template to train with: the tokenizer's own, a named one, or a file; checked before the first row."""

import datetime
import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2.exceptions import SecurityError

from ltune.data.rendering import MARKS, PROBE, Reasoning, Segment, Template
from ltune.data.rows import Message
from ltune.data.sandbox import TooMuch
from ltune.data.template_files import from_path, named, names
from ltune.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["MARKS", "OWN", "PROBE", "Reasoning", "Segment", "Template", "load_template"]

OWN = "of the tokenizer"
TOKENS = re.compile(r"\b[a-z]+_token\b")

log = logging.getLogger(__name__)


def load_template(
    name: str | None, tokenizer: "PreTrainedTokenizerBase", reasoning: Reasoning = "keep", date: str | None = None
) -> Template:
    """The named template, the one in a ``.jinja`` file, or, for None, the tokenizer's own.

    Args:
        name: As data.template has it.
        tokenizer: Whose control tokens it writes.
        reasoning: See ``Template``.
        date: That it writes if it writes today's, as 2026-11-26.

    Raises:
        UsageError: Unknown name, no file, a tokenizer without a template, a template that cannot be trained with, or no date.
    """
    tokens = tokenizer.special_tokens_map
    if name is None:
        template = Template(OWN, _own(tokenizer), tokens)
    else:
        drops_history = reasoning == "drop_history"
        file = from_path(Path(name).expanduser(), drops_history) if name.endswith(".jinja") else named(name, drops_history)
        template = Template(name, file.source, tokens, file.facts.default_system, file.facts.stop_words)
    template = replace(template, reasoning=reasoning, date=None if date is None else _day(date))
    _check_trainable(template)
    if not template.end_text.strip():
        log.warning("template %s writes nothing after the last answer: a model does not learn from it where to stop", template.name)
    elif template.end_token(tokenizer) is None:
        log.warning("template %s: what ends an answer is no token of this tokenizer; it is spelled out in ordinary tokens", template.name)
    if name in names() and tokenizer.chat_template:
        _report_mismatch(template, Template(OWN, _own(tokenizer), tokens, date=template.date))
    return template


def try_out(name: str, reasoning: Reasoning = "keep") -> None:
    """Render a conversation that all templates should take with the one in a ``.jinja`` file, as far as that can be without a tokenizer.

    Raises:
        UsageError: It raises, goes on for ever, writes too much or tries to leave the sandbox.
    """
    source = from_path(Path(name).expanduser(), reasoning == "drop_history").source
    tokens = {token: f"<{token}>" for token in TOKENS.findall(source)}
    template = Template(name, source, tokens)
    try:
        template.text(_probe(template))
    except UsageError as error:
        # A template may well refuse control tokens that no tokenizer has
        if not tokens or isinstance(error.__cause__, TooMuch | SecurityError):
            raise


def _own(tokenizer: "PreTrainedTokenizerBase") -> str:
    templates = tokenizer.chat_template
    source = templates.get("default") if isinstance(templates, dict) else templates
    if not source:
        raise UsageError(
            "data.template: null takes the tokenizer's own chat template, and this tokenizer has none.\n"
            "Choose one:  --data.template chatml  or another that  ltune templates  lists, or path/to/file.jinja"
        )
    return source


def _day(text: str) -> datetime.date:
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        raise UsageError(f"data.date: {text!r} is no date.\nGive year, month and day:  --data.date 2026-11-26") from None


def _check_trainable(template: Template) -> None:
    probe = _probe(template)
    trained = template.probed(probe)
    if probe[-1].content not in trained or "question" in trained:
        what = "{% generation %} marks do not stand around the assistant's answer" if template.marked else "answers do not show in its text"
        raise UsageError(
            f"the chat template {template.name}: its {what}.\n"
            "{% generation %}...{% endgeneration %} must enclose the assistant's text and its end token, outside macros."
        )


def _probe(template: Template) -> Sequence[Message]:
    return PROBE if template.marked else PROBE[:2]  # a second answer may have to wait for data.reasoning


def _report_mismatch(template: Template, own: Template) -> None:
    """One line, where the two differ."""
    ours = template.text(PROBE)
    try:
        theirs = own.text(PROBE)
    except UsageError as error:
        log.warning("%s", str(error).splitlines()[0])
        return
    if ours != theirs:
        pairs = zip(ours, theirs, strict=False)
        place = next((number for number, (one, other) in enumerate(pairs) if one != other), min(len(ours), len(theirs)))
        log.warning(
            "template %s is not the tokenizer's own: from character %d on it writes %r, the tokenizer's own %r",
            template.name, place, _excerpt(ours, place), _excerpt(theirs, place),
        )  # fmt: skip


def _excerpt(text: str, place: int) -> str:
    begin, end = max(0, place - 10), place + 30
    return ("..." if begin else "") + text[begin:end] + ("..." if end < len(text) else "")
