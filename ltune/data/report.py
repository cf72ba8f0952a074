"""What was trained on: counts of rows and tokens, what was cut or dropped and why; and a row as it is trained."""

import json
import os
import sys
from array import array
from collections import Counter
from hashlib import blake2b
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ltune.data.rows import IGNORE, Sequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLACES_SHOWN = 20
GREEN, PLAIN = "\033[32m", "\033[0m"


class Tally:
    """Counts of one data set, row by row."""

    def __init__(self) -> None:
        self.counts = Counter(rows=0, tokens=0, trained_tokens=0, truncated=0, control_tokens_in_text=0)
        self.lengths: Counter[int] = Counter()  # of the power of two that a length does not exceed
        self.dropped: dict[str, dict[str, Any]] = {}
        self.hashes = array("q")

    def add(self, input_ids: np.ndarray, trained: int) -> None:
        """One sequence, (tokens,) int32, and how many of its tokens are trained."""
        self.counts.update(rows=1, tokens=len(input_ids), trained_tokens=trained)
        self.lengths[1 << (len(input_ids) - 1).bit_length()] += 1
        self.hashes.append(int.from_bytes(blake2b(input_ids.tobytes(), digest_size=8).digest(), "big", signed=True))

    def note(self, truncated: bool, control_tokens: bool) -> None:
        """What was special about a row."""
        self.counts.update(truncated=truncated, control_tokens_in_text=control_tokens)

    def drop(self, reason: str, place: str) -> None:
        """One row that is not trained on."""
        entry = self.dropped.setdefault(reason, {"rows": 0, "places": []})
        entry["rows"] += 1
        if len(entry["places"]) < PLACES_SHOWN:
            entry["places"].append(place)

    def __iadd__(self, other: "Tally") -> "Tally":
        self.counts.update(other.counts)
        self.lengths.update(other.lengths)
        self.hashes.extend(other.hashes)
        for reason, entry in other.dropped.items():
            mine = self.dropped.setdefault(reason, {"rows": 0, "places": []})
            mine["rows"] += entry["rows"]
            mine["places"] = (mine["places"] + entry["places"])[:PLACES_SHOWN]
        return self

    def as_dict(self) -> dict[str, Any]:
        """Plain data. ``lengths`` {"64": 3}: three sequences have 33 to 64 tokens."""
        hashes = np.frombuffer(self.hashes, np.int64) if self.hashes else np.empty(0, np.int64)
        return {
            **self.counts,
            "duplicates": len(hashes) - len(np.unique(hashes)),
            "lengths": {str(bound): self.lengths[bound] for bound in sorted(self.lengths)},
            "dropped": self.dropped,
        }


def data_report(tallies: list[tuple[str, Tally]], sources: list[dict[str, Any]]) -> dict[str, Any]:
    """The counts in total and of each data set, and the files that were read."""
    total = Tally()
    for _, tally in tallies:
        total += tally
    return {
        "total": total.as_dict(),
        "datasets": [{"name": name, **tally.as_dict()} for name, tally in tallies],
        "sources": sources,
    }


def write_report(report: dict[str, Any], path: str | Path) -> None:
    """As JSON, for people to read."""
    Path(path).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def show_row(sequence: Sequence, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The row's text, what is trained of it in green on a terminal (logs go to stderr), else between ⟦ and ⟧."""
    coloured = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    begin, end = (GREEN, PLAIN) if coloured else ("⟦", "⟧")
    shown = []
    tokens = zip(map(int, sequence.input_ids), map(int, sequence.labels), strict=True)
    for trained, run in groupby(tokens, key=lambda token: token[1] != IGNORE):
        ids = [id for id, _ in run]
        text = _printable(str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)))
        shown.append(f"{begin}{text}{end}" if trained else text)
    return "".join(shown)


def _printable(text: str) -> str:
    """A row must not steer the terminal that shows it."""
    return "".join(character if character.isprintable() or character in "\n\t" else ascii(character)[1:-1] for character in text)
