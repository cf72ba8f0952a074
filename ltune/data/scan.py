"""A quick look at the files of rows, before anything heavy is imported: what is no JSON is told at once, wherever it stands.

A faster parser than the reader's passes over what is sound. What it does not pass is handed to the reader itself, which has the last word
and all the words; so the look refuses nothing that the reader takes. It finds only what is malformed: what a row means comes later.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from ltune.data.contents import is_known
from ltune.data.json_array import Stretch, items, well_inside
from ltune.data.read import LINES, checked, json_line, place_prefixes, text_blocks
from ltune.data.rows import BadRow
from ltune.data.sources import Source

MOST = 2 << 30  # bytes, of all files; a look at more takes longer than it is worth, and is left to the reader
BLOCK = 1 << 20  # bytes of lines that are read at once
TRIES = 8  # places where an item may begin, from the end of a stretch
OPENING = re.compile(r'\{\s*"[^"\\]{0,80}"\s*:')  # with a first key, which tells an item from what stands in it


def scan(sources: list[tuple[Source, int | None]], memory: str | Path) -> None:
    """Look at the files, in order.

    Args:
        sources: Each with how many rows are read of it; None: all.
        memory: Where hashes are remembered (``contents.py``); a file whose hash is known has been read before.

    Raises:
        UsageError: The first line or row that is malformed, in the reader's words.
    """
    left = MOST
    for source, limit in sources:
        rows = None if source.num_samples is not None else limit
        for path, prefix in zip(source.files, place_prefixes(source.files), strict=True):
            seen = None
            with suppress(OSError):  # the reader says what is wrong with such a file
                if path.is_file() and not is_known(path, memory):
                    left -= path.stat().st_size
                    if left < 0:
                        return
                    seen = _scan_file(path, prefix, rows)
            if rows is not None:
                if seen is None:  # how many rows of the next file are read is not known
                    break
                rows -= seen


def _scan_file(path: Path, prefix: str, limit: int | None) -> int | None:
    """The number of rows seen; None for a kind of file that is not looked at."""
    if path.suffix == ".json":
        return _scan_array(path, prefix, limit)
    return _scan_lines(path, prefix, limit) if path.suffix in LINES and path.suffix != ".txt" else None


# -- lines ----------------------------------------------------------------------------------------------------------------------------


def _scan_lines(path: Path, prefix: str, limit: int | None) -> int:
    loads, number, blank = orjson.loads, 0, 0
    last = sys.maxsize if limit is None else limit
    with path.open("rb", buffering=BLOCK) as file:
        for number, line in enumerate(file, 1):
            if number > last:
                return number - 1 - blank
            try:
                if type(loads(line)) is dict:
                    continue
            except ValueError:
                pass
            if not _look_closely(path, prefix, number, line):
                blank, last = blank + 1, last + 1
    return number - blank


def _look_closely(path: Path, prefix: str, number: int, line: bytes) -> bool:
    """Whether the line holds a row."""
    found = [checked(f"{prefix}{number}", value) for _, value in json_line(path, number, line)]
    _refuse(found)
    return bool(found)


def _refuse(records: list[Any]) -> None:
    bad = next((record for record in records if isinstance(record, BadRow)), None)
    if bad is not None:
        raise bad


# -- an array -------------------------------------------------------------------------------------------------------------------------


def _scan_array(path: Path, prefix: str, limit: int | None) -> int | None:
    number = 0
    with path.open("rb") as file:
        stretch = Stretch(path, text_blocks(path, file))
        if stretch.skip() != "[":
            return None
        # The quick way looks further ahead than the rows that are wanted
        records = items(stretch, _quickly if limit is None else well_inside)
        for number, record in enumerate(islice(records, limit), 1):
            if type(record) is not dict:
                _refuse([checked(f"{prefix}{number}", record)])
    return number


def _quickly(stretch: Stretch) -> Iterator[Any]:
    """The items up to the last that begins in this stretch, parsed as one; item by item where that fails."""
    text, begin = stretch.text, stretch.position
    opening = OPENING.match(text, begin)
    end = len(text)
    for _ in range(TRIES if opening else 0):
        end = text.rfind(opening.group(), begin + 1, end)  # type: ignore[union-attr]
        if end < 0:
            break
        # What is JSON between brackets ends where an item does, wherever the key was found
        before = text[begin:end].rstrip(" \t\r\n")
        try:
            passed = orjson.loads(f"[{before[:-1]}]") if before.endswith(",") else None
        except ValueError:
            continue
        if passed:
            yield from passed
            stretch.position = end
            return
    yield from well_inside(stretch)
