"""A data report as lines for people."""

from collections.abc import Iterator
from typing import Any

from ltune.data.paint import printable
from ltune.data.remarks import rows, share

BAR = 40  # characters of the histogram's longest bar
PLACES = 20
REASONS = 8


def report_lines(report: dict[str, Any], train: int, held_out: int, places: int = PLACES, bars: bool = True) -> list[str]:
    """What there is to say of the rows in total, a topic a line, and of each data set where there are several.

    Args:
        report: As in data_report.json.
        train: Rows of an epoch; a mix may take some twice and others not at all.
        held_out: Rows that validate.
        places: How many places to name on a line.
        bars: With the histogram of lengths.
    """
    total = report["total"]
    lines = [*_sizes(total, train, held_out)]
    if bars:
        lines += _bars(total["histogram"])
    lines += _topics(total, places)
    if len(report["datasets"]) > 1:
        lines += _each(report["datasets"])
    return [printable(line) for line in lines]


def _sizes(total: dict[str, Any], train: int, held_out: int) -> Iterator[str]:
    tokens, trained = total["tokens"], total["trained_tokens"]
    mixed = f", mixed from {total['rows'] - held_out:,}" if train != total["rows"] - held_out else ""
    yield _line("rows", f"{train:,} to train on{mixed}" + (f", {held_out:,} held out for validation" if held_out else ""))
    yield _line("tokens", f"{tokens:,}, of which {trained:,} are trained ({share(trained, tokens)})")
    yield _line("tokens a row", f"median {total['median']:,}, longest {total['longest']:,}")


def _bars(histogram: list[list[int]]) -> Iterator[str]:
    most = max((count for _, _, count in histogram), default=0)
    width = len(f"{histogram[-1][1]:,}") if histogram else 0
    for low, high, count in histogram:
        bar = "█" * (-(-count * BAR // most))  # something for every row
        yield f"  {low:>{width},} to {high:>{width},} {bar} {count:,}"


def _topics(total: dict[str, Any], places: int) -> Iterator[str]:
    listed, read = total["places"], total["rows"]
    for name in ("truncated", "split") if total["split"] else ("truncated",):
        yield _line(name, _with_places(_rows(total[name], read), listed.get(name, []), total[name], places))
    for name, entries in (("dropped", total["dropped"]), ("bad, skipped", total["skipped"])):
        if not entries:
            yield _line(name, "no row")
        frequent = sorted(entries.items(), key=lambda entry: -entry[1]["rows"])
        for reason, entry in frequent[:REASONS]:
            yield _line(name, _with_places(f"{rows(entry['rows'])}, {reason}", entry["places"], entry["rows"], places))
        if rest := frequent[REASONS:]:
            yield _line(name, f"{rows(sum(entry['rows'] for _, entry in rest))} for {len(rest)} more reasons")
    yield _line("duplicates", _rows(total["duplicates"], read))
    for name, key in (("control tokens", "control_tokens_in_text"), ("empty answers", "empty_answers"), ("end tokens cut", "ends_cut")):
        text = _spelled(total) if key == "control_tokens_in_text" else _rows(total[key], read)
        yield _line(name, _with_places(text, listed.get(key, []), total[key], places))


def _spelled(total: dict[str, Any]) -> str:
    tokens = ", ".join(f"{token} {times:,}×" for token, times in total["control_tokens"].items())
    text = _rows(total["control_tokens_in_text"], total["rows"])
    return f"{text} spell {tokens or 'them'} in text" if total["control_tokens_in_text"] else text


def _each(datasets: list[dict[str, Any]]) -> Iterator[str]:
    yield _line("data sets", "")
    for one in datasets:
        trained = share(one["trained_tokens"], one["tokens"])
        yield f"  {one['name']}: {rows(one['rows'])}, {one['tokens']:,} tokens, {trained} trained, longest {one['longest']:,}"


def _rows(count: int, whole: int) -> str:
    return f"{rows(count)} ({share(count, whole)})" if count else "no row"


def _with_places(text: str, listed: list[str], count: int, limit: int) -> str:
    if not listed or not limit:
        return text
    more = f" and {count - limit:,} more" if count > limit and len(listed) >= limit else ""
    return f"{text}: {_short(listed[:limit])}{more}"


def _short(places: list[str]) -> str:
    """A file's name is not said again: "rows.jsonl:3, 5, 8"."""
    shown, before = [], None
    for place in places:
        file = place.rstrip("0123456789")
        shown.append(place.removeprefix(file) if file == before else place)
        before = file
    return ", ".join(shown)


def _line(name: str, text: str) -> str:
    return f"{name:<16}{text}".rstrip()
