"""How the next token is chosen: the knobs of generation, checked where they enter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ltune.errors import UsageError


@dataclass
class Sampling:
    """How answers are generated.

    Args:
        max_new_tokens: longest answer, in tokens.
        temperature: 0 takes the likeliest token each time (greedy); above 0 samples, flatter as it grows.
        top_p: sample among the likeliest tokens that together have this probability; 1 is off.
        top_k: sample among this many likeliest tokens; 0 is off.
        repetition_penalty: above 1 makes tokens that were already there less likely; 1 is off. Applies to greedy answers too.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        rules = [
            (self.max_new_tokens >= 1, "max_new_tokens", "at least 1"),
            (0 <= self.temperature < math.inf, "temperature", "0 (greedy) or more"),
            (0 < self.top_p <= 1, "top_p", "above 0 and at most 1 (1 is off)"),
            (self.top_k >= 0, "top_k", "0 (off) or more"),
            (0 < self.repetition_penalty < math.inf, "repetition_penalty", "above 0 (1 is off)"),
        ]
        wrong = [f"{name} must be {rule}, got {vars(self)[name]}" for holds, name, rule in rules if not holds]
        if wrong:
            raise UsageError("sampling: " + "; ".join(wrong))

    def arguments(self) -> dict[str, Any]:
        """Every choice spelled out for transformers' GenerationConfig, whose own defaults (top_k 50, for one) are not ours."""
        chosen: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": self.temperature > 0,
            "repetition_penalty": self.repetition_penalty,
        }
        if self.temperature > 0:
            chosen |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return chosen
