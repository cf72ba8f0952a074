"""What was trained on: counts of rows and tokens, what was cut, dropped or skipped and why; and a row as it is trained."""

import json
import sys
from array import array
from collections import Counter
from collections.abc import Mapping
from hashlib import sha1
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ltune.data.paint import in_colour, paint
from ltune.data.rows import IGNORE, Sequence
from ltune.data.segments import tokens_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLACES_SHOWN = 20
REASONS_SHOWN = 50  # what is wrong with a row may quote it, and then every row has a reason of its own
OTHER = "other reasons"
BINS = 16  # of the histogram, at most
NOTES = ("truncated", "control_tokens_in_text", "empty_answers", "ends_cut", "split", "equal_answers")  # what may be special about a row


class Tally:
    """Counts of one data set, row by row. Tallies of its parts add up with ``+=``, in the order of the rows."""

    def __init__(self) -> None:
        self.counts = Counter(dict.fromkeys(("rows", "tokens", "trained_tokens", *NOTES, "bad_rows"), 0))
        self.lengths: Counter[int] = Counter()  # in tokens, each as it is: there are not more of them than max_length
        self.control_tokens: Counter[str] = Counter()  # spelled in the rows' text, and how often
        self.noted: dict[str, list[str]] = {}  # the first places of each note
        self.dropped: dict[str, dict[str, Any]] = {}
        self.skipped: dict[str, dict[str, Any]] = {}
        self.hashes = array("q")
        self.answer: bytes | None = None  # the trained tokens of the first row
        self.answers_differ = False

    def add(self, input_ids: np.ndarray, trained: int, labels: np.ndarray | None = None, same_row: bool = False) -> None:
        """One sequence, (tokens,) int32, how many of its tokens are trained, and, to see whether all answers are the same, its labels.

        ``same_row``: it belongs to the row of the sequence before it.
        """
        counts, length = self.counts, len(input_ids)
        counts["rows"] += not same_row
        counts["tokens"] += length
        counts["trained_tokens"] += trained
        self.lengths[length] += 1
        before = self.hashes.pop().to_bytes(8, "big", signed=True) if same_row else b""
        self.hashes.append(_hash(before + input_ids.tobytes()))
        if labels is not None and not self.answers_differ:
            self._compare(labels[labels != IGNORE].tobytes())

    def note(
        self,
        truncated: bool,
        control_tokens: bool | Mapping[str, int],
        *,
        empty_answer: bool = False,
        end_cut: bool | int = False,
        split: bool = False,
        equal_answers: bool = False,
        place: str | None = None,
    ) -> None:
        """What was special about a row.

        Args:
            truncated: Something of it was cut off.
            control_tokens: Those that its text spells, and how often; or only whether it does.
            empty_answer: An answer of it has no text.
            end_cut: The end token of an answer that is trained was cut off, or how often.
            split: It became several rows.
            equal_answers: The better answer of a pair is the worse one, token by token.
            place: The row's, to be listed.
        """
        marks = (truncated, control_tokens, empty_answer, end_cut, split, equal_answers)
        if any(marks):
            for name, found in zip(NOTES, marks, strict=True):
                if found:
                    self.counts[name] += 1
                    _list(self.noted.setdefault(name, []), place)
            if isinstance(control_tokens, Mapping):
                self.control_tokens.update(control_tokens)

    def drop(self, reason: str, place: str) -> None:
        """One row that is not trained on."""
        _count(self.dropped, reason, 1, [place])

    def skip(self, reason: str, place: str) -> None:
        """One row that could not be read, where such rows are to be skipped."""
        self.counts["bad_rows"] += 1
        _count(self.skipped, reason, 1, [place])

    def _compare(self, answer: bytes) -> None:
        if self.answer is None:
            self.answer = answer
        elif self.answer != answer:
            self.answers_differ = True

    def __iadd__(self, other: "Tally") -> "Tally":
        self.counts.update(other.counts)
        self.lengths.update(other.lengths)
        self.control_tokens.update(other.control_tokens)
        self.hashes.extend(other.hashes)
        for name, places in other.noted.items():
            self.noted[name] = (self.noted.get(name, []) + places)[:PLACES_SHOWN]
        for mine, theirs in ((self.dropped, other.dropped), (self.skipped, other.skipped)):
            for reason, entry in theirs.items():
                _count(mine, reason, entry["rows"], entry["places"])
        self.answers_differ |= other.answers_differ
        if other.answer is not None:
            self._compare(other.answer)
        return self

    def as_dict(self) -> dict[str, Any]:
        """Plain data. ``lengths`` {"64": 3}: three sequences have 33 to 64 tokens; ``histogram`` [[33, 48, 2], ...]."""
        hashes = np.frombuffer(self.hashes, np.int64) if self.hashes else np.empty(0, np.int64)
        powers: Counter[int] = Counter()
        for length, rows in self.lengths.items():
            powers[1 << (length - 1).bit_length()] += rows
        return {
            **self.counts,
            "duplicates": len(hashes) - len(np.unique(hashes)),
            "one_answer": self.counts["rows"] > 1 and self.answer is not None and not self.answers_differ,
            "lengths": {str(bound): powers[bound] for bound in sorted(powers)},
            "median": median(self.lengths),
            "longest": max(self.lengths, default=0),
            "histogram": histogram(self.lengths),
            "control_tokens": dict(self.control_tokens.most_common()),
            "places": self.noted,
            "dropped": self.dropped,
            "skipped": self.skipped,
        }


def _hash(contents: bytes) -> int:
    return int.from_bytes(sha1(contents, usedforsecurity=False).digest()[:8], "big", signed=True)


def _count(entries: dict[str, dict[str, Any]], reason: str, rows: int, places: list[str]) -> None:
    kept = reason.partition("\n")[0].rstrip(".")
    kept = kept if kept in entries or len(entries) < REASONS_SHOWN else OTHER
    entry = entries.setdefault(kept, {"rows": 0, "places": []})
    entry["rows"] += rows
    for place in places:
        _list(entry["places"], place)


def _list(places: list[str], place: str | None) -> None:
    if place is not None and len(places) < PLACES_SHOWN:
        places.append(place)


def median(lengths: Mapping[int, int]) -> int:
    """Half of the rows are no longer than this."""
    seen, half = 0, sum(lengths.values()) / 2
    for length in sorted(lengths):
        seen += lengths[length]
        if seen >= half:
            return length
    return 0


def histogram(lengths: Mapping[int, int]) -> list[list[int]]:
    """[from, to, rows] in equal steps of 1, 2, 4, 8 ... tokens, from the shortest row's to the longest one's."""
    if not lengths:
        return []
    step = 1
    while max(lengths) > step * BINS:
        step *= 2
    counted: Counter[int] = Counter()
    for length, rows in lengths.items():
        counted[(length - 1) // step] += rows
    return [[number * step + 1, (number + 1) * step, counted[number]] for number in range(min(counted), max(counted) + 1)]


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


# -- a row ----------------------------------------------------------------------------------------------------------------------------


def show_row(sequence: Sequence, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The row for the log, which goes to stderr; its colours or marks are those of paint.py."""
    return paint(tokens_of(sequence, tokenizer), coloured=in_colour(sys.stderr))
