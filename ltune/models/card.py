"""The README.md that lies beside saved weights: what was trained on what, how, and how it went."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

SECRET_NAME = r"(?:token|key|password|secret)"
SECRETS = (
    re.compile(r"()\b(?:hf_|sk-|ghp_)[A-Za-z0-9_-]{8,}"),  # by their looks
    re.compile(rf"(--[\w.-]*{SECRET_NAME}\s+)\S+", re.IGNORECASE),  # --logger.token X
    re.compile(rf"({SECRET_NAME}['\"]?\s*[=:]\s*['\"]?)[^\s'\",}}]+", re.IGNORECASE),  # API_KEY=X, {'token': 'X'}
)
CURVE_ROWS = 12


@dataclass(frozen=True)
class Card:
    """What the card tells; `command` and `settings` are shown with secrets blotted out.

    Args:
        base_model: As the user named it: hub id, folder, or "tiny".
        revision: Of the base model.
        datasets: Names of the data sets, in order.
        rows: Rows trained on.
        settings: Names and values, in the order to be shown.
        metrics: Final figures, such as {"train/loss": 0.41}.
        curve: (step, loss) pairs; thinned out to a table of a dozen.
        command: The command line.
    """

    base_model: str
    revision: str | None = None
    datasets: Sequence[str] = ()
    rows: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    curve: Sequence[tuple[int, float]] = ()
    command: str | None = None


def render_card(card: Card, adapter: bool) -> str:
    """Markdown with YAML front matter; the same card gives the same text (no date, no machine)."""
    parts = [front_matter(card, adapter), f"# {'Adapter for' if adapter else 'Fine-tuned'} {card.base_model}"]
    if card.datasets:
        rows = f" ({card.rows} rows)" if card.rows is not None else ""
        parts.append(f"## Data\n\n{', '.join(card.datasets)}{rows}")
    if card.settings:
        parts.append("## Settings\n\n" + table(("setting", "value"), [setting(name, value) for name, value in card.settings.items()]))
    if card.metrics:
        parts.append("## Result\n\n" + table(("metric", "value"), [(name, f"{value:.6g}") for name, value in card.metrics.items()]))
    if card.curve:
        parts.append("## Training loss\n\n" + table(("step", "loss"), [(str(step), f"{loss:.4f}") for step, loss in thinned(card.curve)]))
    if card.command:
        parts.append(f"## Command\n\n```\n{redact(card.command)}\n```")
    if adapter:
        parts.append(f"## Use\n\n{usage(card)}")
    return "\n\n".join(parts) + "\n"


def front_matter(card: Card, adapter: bool) -> str:
    import yaml

    fields: dict[str, Any] = {
        "base_model": card.base_model,
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["ltune", "lora"] if adapter else ["ltune"],
    }
    if card.datasets:
        fields["datasets"] = list(card.datasets)
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---"


def setting(name: str, value: Any) -> tuple[str, str]:
    secret = re.search(rf"(?:^|[._]){SECRET_NAME}$", name)
    return name, "***" if secret and value else redact(str(value))


def usage(card: Card) -> str:
    base = "the folder `assets/tiny` inside the ltune package" if card.base_model == "tiny" else f"`{card.base_model}`"
    return f"`PeftModel.from_pretrained(base, folder)`, where `base` is loaded from {base}; or `ltune chat` with this folder."


def table(head: tuple[str, str], rows: Sequence[tuple[str, str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|---|---|"]
    lines += [f"| {name} | {value.replace('|', chr(92) + '|').replace(chr(10), ' ')} |" for name, value in rows]
    return "\n".join(lines)


def thinned(curve: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most CURVE_ROWS points, evenly spaced, with the first and the last."""
    if len(curve) <= CURVE_ROWS:
        return list(curve)
    return [curve[round(i * (len(curve) - 1) / (CURVE_ROWS - 1))] for i in range(CURVE_ROWS)]


def redact(text: str) -> str:
    """The text with what looks like a password or an access token replaced by stars."""
    for secret in SECRETS:
        text = secret.sub(r"\1***", text)
    return text
