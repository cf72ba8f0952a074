"""What is worth a second look in a data report: one line each. It looks at counts only, and refuses nothing."""

from collections.abc import Iterator
from typing import Any

# Above these shares a line says so; the last one: below
TRUNCATED = 0.10  # of the rows that were read
DROPPED = 0.10
DUPLICATES = 0.05  # of all sequences
TRAINED = 0.01  # of all tokens


def remarks(report: dict[str, Any]) -> list[str]:
    """A line for each thing in a data report (``data_report``) that often means a mistake."""
    several = len(report["datasets"]) > 1
    found = [f"{one['name']}: {remark}" if several else remark for one in report["datasets"] for remark in _of(one)]
    return [*found, *_duplicates(report["total"])]


def _of(one: dict[str, Any]) -> Iterator[str]:
    dropped = sum(entry["rows"] for entry in one["dropped"].values())
    read, places = one["rows"] + dropped, one["places"]
    if one["bad_rows"]:
        first = next(iter(one["skipped"].values()))["places"]
        yield f"{rows(one['bad_rows'])} could not be read and are skipped (first: {first[0]})"
    if one["truncated"] > TRUNCATED * read:
        yield f"{_part(one['truncated'], read, 'rows')} are cut at data.max_length; raise it, or choose another data.truncation"
    if dropped > DROPPED * read:
        reasons = "; ".join(dict(sorted(one["dropped"].items(), key=lambda entry: -entry[1]["rows"])))
        yield f"{_part(dropped, read, 'rows')} are dropped: {reasons}"
    if one["ends_cut"]:
        yield f"{rows(one['ends_cut'])} lost the end token of an answer: the model learns to go on{_first(places, 'ends_cut')}"
    if one["empty_answers"]:
        yield f"{rows(one['empty_answers'])} with an empty answer: the model learns to say nothing{_first(places, 'empty_answers')}"
    if one["equal_answers"]:
        yield f"{rows(one['equal_answers'])} with two equal answers: there is nothing to prefer{_first(places, 'equal_answers')}"
    if 0 < one["trained_tokens"] < TRAINED * one["tokens"]:  # of prompts, none is
        yield f"{_part(one['trained_tokens'], one['tokens'], 'tokens')} are trained; is the answer in the right column?"
    if one["one_answer"]:
        yield f"all {one['rows']:,} answers are the same; is the answer in the right column?"


def _duplicates(total: dict[str, Any]) -> Iterator[str]:
    if total["duplicates"] > DUPLICATES * total["rows"]:
        yield f"{_part(total['duplicates'], total['rows'], 'rows')} are the same, token by token, as an earlier one"


def rows(count: int) -> str:
    """ "1 row", "2 rows"."""
    return f"{count:,} row{'' if count == 1 else 's'}"


def share(count: int, whole: int) -> str:
    """In percent, never 0.0% where there is something."""
    percent = 100 * count / max(whole, 1)
    return f"{percent:.1f}%" if percent >= 0.1 or not count else "less than 0.1%"


def _part(count: int, whole: int, what: str) -> str:
    return f"{count:,} of {whole:,} {what} ({share(count, whole)})"


def _first(places: dict[str, list[str]], note: str) -> str:
    return f" (first: {places[note][0]})" if places.get(note) else ""
