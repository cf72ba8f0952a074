"""Rows and report as one page that needs nothing else: no network, no script. Jinja escapes all that comes from the rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltune.apps.report_text import report_lines
from ltune.data.remarks import remarks

if TYPE_CHECKING:
    from ltune.apps.rehearsal import Rehearsal
    from ltune.apps.shown_rows import ShownRow
    from ltune.data.segments import Token

TEMPLATE = Path(__file__).with_name("preview_page.html.jinja")
WIDTH, BAR_HEIGHT = 420, 18  # of the histogram, in pixels


@dataclass(frozen=True)
class Mark:
    """Text that is shown as one: a token, or those that make up a character together."""

    text: str
    kind: str  # class names in the page's style
    hint: str  # shown where the pointer rests


def page(rows: list[ShownRow], rehearsal: Rehearsal) -> str:
    """The page's HTML."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    report = rehearsal.report
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        rows=[{"row": row, "marks": marks_of(row.tokens)} for row in rows],
        all_rows=len(rehearsal.datamodule.train_rows),
        facts=facts_of(rehearsal),
        lines=report_lines(report, len(rehearsal.datamodule.train_rows), rehearsal.held_out, bars=False),
        remarks=remarks(report),
        bars=bars_of(report["total"]["histogram"]),
        width=WIDTH,
        bar_height=BAR_HEIGHT,
    )


def marks_of(tokens: list[Token]) -> list[Mark]:
    """Tokens without text of their own go with the one that completes their character."""
    marks: list[Mark] = []
    waiting: list[Token] = []
    for number, token in enumerate(tokens, 1):
        waiting.append(token)
        if token.text or number == len(tokens):
            marks.append(_mark(waiting))
            waiting = []
    return marks


def _mark(tokens: list[Token]) -> Mark:
    last = tokens[-1]
    hint = "\n".join(f"id {token.id}, label {token.label if token.trained else f'{token.label} (ignored)'}" for token in tokens)
    kinds = ("trained" if last.trained else "ignored", "control" if last.control else "", "line" if "\n" in last.text else "")
    return Mark(last.text, " ".join(filter(None, kinds)), hint)


def bars_of(histogram: list[list[int]]) -> list[dict[str, Any]]:
    """A bar for each step of the lengths."""
    most = max((count for _, _, count in histogram), default=0)
    return [
        {"label": f"{low:,} to {high:,}", "rows": f"{count:,}", "width": round(WIDTH * count / most, 1)} for low, high, count in histogram
    ]


def facts_of(rehearsal: Rehearsal) -> dict[str, str]:
    """What the rows depend on, for the head of the page."""
    data, model = rehearsal.resolved["data"], rehearsal.resolved["model"]
    template = rehearsal.datamodule.template
    return {
        "model": str(model["model"]),
        "data sets": ", ".join(one["name"] if isinstance(one, dict) else str(one) for one in data["datasets"]),
        "template": template.name if template else "none: plain text",
        "train_on": str(data["train_on"]),
        "max_length": f"{data['max_length']:,} ({data['truncation']})",
    }
