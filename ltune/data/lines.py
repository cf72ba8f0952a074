"""A quick look at a stretch of a file of lines: which is the first that does not hold a row?

A faster parser than the reader's and a cheap test (``plain.py``) pass over what is sound. A line that they do not pass is handed to the
reader and to ``to_row``, which have the last word; so nothing is refused that they take.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson

from ltune.data.block_signs import keys_written, without_escapes
from ltune.data.formats import to_row
from ltune.data.read import checked, json_line
from ltune.data.rows import BadRow, Row
from ltune.data.sources import Source
from ltune.data.usual import Test, keys_in, usual
from ltune.data.written import EXACT, LINES, Style, row_like, rows_like
from ltune.errors import UsageError

STRETCH = 2 << 20  # bytes that are looked at in one go
BLOCK = 64 << 10  # bytes of it that are read at once: what needs no new memory from the system is much quicker
KEY = re.compile(rb'(?<!\\)"[ \t]*:')
NULL = b"\\u0000"
FIRST = 100  # rows that tell how others are written


class Form:
    """What the rows of a data set must be.

    Args:
        source: With its format.
        rows: The kind wanted.
    """

    def __init__(self, source: Source, rows: type[Row]) -> None:
        self.source, self.rows = source, rows
        self.usual = usual(source.format or "", source.columns, source.tags, rows)
        self.test: Test = self.usual.test() if self.usual else lambda record: 0

    def alike(self, texts: Iterable[bytes], styles: Iterable[Style]) -> bytes | None:
        """A pattern of rows that are written like these, in one of the styles; None where there is none."""
        rows: list[bytes | None] = []
        for text in texts if self.usual and EXACT else ():
            with suppress(ValueError):
                record, bare = orjson.loads(text), without_escapes(text)
                if bare is not None and type(record) is dict and self.usual and self.usual.needed <= record.keys():
                    rows.append(row_like(bytes(bare), record, self.usual.value, styles))
        return rows_like(rows)

    def check(self, place: str, record: Any) -> None:
        """Raises UsageError where the record is no such row."""
        to_row(place, record, self.source.format, self.source.columns, self.source.tags, self.rows)


class Seen(NamedTuple):
    """How many lines and rows a stretch has up to the first line that is refused, and where in the file that begins; None: none is."""

    lines: int
    rows: int
    refused: int | None


class Looked(NamedTuple):
    """How many lines, rows and keys a block has, up to the first line that is refused."""

    lines: int
    rows: int
    keys: int = 0
    refused: bool = False


class Lines:
    """Looks at a file, a stretch at a time.

    Args:
        path: The file.
        form: What its rows must be; None: any object.
    """

    def __init__(self, path: Path, form: Form | None) -> None:
        self.path, self.form = path, form
        self.test: Test = form.test if form else is_object
        self.alike = self._alike()

    def stretches(self) -> range:
        """Where they begin."""
        return range(0, self.path.stat().st_size, STRETCH)

    def __call__(self, begin: int) -> Seen:
        """Look at the lines that begin in this stretch."""
        lines = rows = 0
        for offset, block in self._blocks(begin):
            # The file's first line is read with more care; how the others are numbered is all the same
            seen = self._look(block, 2 if offset else 1)
            lines, rows = lines + seen.lines, rows + seen.rows
            if seen.refused:
                return Seen(lines, rows, offset + sum(map(len, islice(BytesIO(block), seen.lines))))
        return Seen(lines, rows, None)

    def refuse(self, prefix: str, number: int, offset: int) -> None:
        """Raise what is wrong with the line that begins there."""
        with self.path.open("rb") as file:
            file.seek(offset)
            self._read_closely(file.readline(), number, prefix)

    def _blocks(self, begin: int) -> Iterator[tuple[int, bytes]]:
        """(offset, whole lines) of all lines that begin in the stretch."""
        with self.path.open("rb") as file:
            if begin:
                file.seek(begin - 1)
                file.readline(STRETCH + 1)  # of a line that goes on longer than that, no more is wanted
            offset = file.tell()
            while offset < begin + STRETCH and (block := file.read(min(BLOCK, begin + STRETCH - offset))):
                if not block.endswith(b"\n"):
                    block += file.readline()
                yield offset, block
                offset += len(block)

    def _look(self, block: bytes, first: int) -> Looked:
        """At the rows that are not written like the first ones; of whole blocks where these cannot be told."""
        bare = None if self.alike is None else without_escapes(block)
        if bare is None or self.alike is None:
            return self._look_at_each(block, first)
        others = list(_others(block, bare, self.alike))
        lines = block.count(b"\n") + (not block.endswith(b"\n"))
        if not others:
            return Looked(lines, lines)
        found = self._look_at_each(b"".join(line for _, line in others), first if others[0][0] == 0 else 2)
        blank = found.lines - found.rows
        if found.refused:
            lines = others[found.lines][0]
        return Looked(lines, lines - blank, refused=found.refused)

    def _look_at_each(self, block: bytes, first: int) -> Looked:
        """Quickly; where the quick parser may have passed what the reader does not, once more."""
        found = self._pass_over(block, first)
        if self.form and (found.refused or found.keys != keys_written(block) or NULL in block):
            return self._once_more(block, found, first)
        return found

    def _pass_over(self, block: bytes, first: int) -> Looked:
        loads, test, blank, keys, at = orjson.loads, self.test, 0, 0, -1
        for at, line in enumerate(BytesIO(block)):
            try:
                if here := test(loads(line)):
                    keys += here
                    continue
            except (ValueError, KeyError, TypeError):
                pass
            try:
                found = self._look_closely(line, at + first)
            except UsageError:
                return Looked(at, at - blank, keys, refused=True)
            if found is None:
                blank += 1
            else:
                keys += found
        return Looked(at + 1, at + 1 - blank, keys)

    def _once_more(self, block: bytes, passed: Looked, first: int) -> Looked:
        """The lines that were passed, for a null character and a key given twice."""
        blank = 0
        for at, line in enumerate(islice(BytesIO(block), passed.lines)):
            try:
                if NULL in line or len(KEY.findall(line)) != keys_in(orjson.loads(line)):
                    self._read_closely(line, at + first)
            except UsageError:
                return Looked(at, at - blank, 0, refused=True)
            except ValueError:  # the reader has looked at it
                blank += not line.strip()
        return passed

    def _alike(self) -> re.Pattern[bytes] | None:
        """A pattern of lines that are written like the first ones."""
        texts = (line.rstrip(b"\r\n") for _, block in islice(self._blocks(0), 1) for line in islice(BytesIO(block), FIRST))
        row = self.form.alike(texts, LINES) if self.form else None
        return re.compile(rb"(?:%s\r?\n)*+" % row) if row else None

    def _look_closely(self, line: bytes, number: int) -> int | None:
        """The keys in a line that is not plain; None where it is blank.

        Raises:
            UsageError: It is refused.
        """
        if self.form:
            with suppress(ValueError, UsageError):
                record = orjson.loads(line)
                self.form.check("", checked("", record))
                return keys_in(record)
        return len(KEY.findall(line)) if self._read_closely(line, number) else None

    def _read_closely(self, line: bytes, number: int, prefix: str = "") -> bool:
        """Whether the line holds a row; all is done as the reader does it.

        Raises:
            UsageError: As the reader does.
        """
        for _, value in json_line(self.path, number, line):
            place = f"{prefix}{number}"
            record = checked(place, value)
            if isinstance(record, BadRow):
                raise record
            if self.form:
                self.form.check(place, record)
            return True
        return False


def is_object(record: Any) -> int:
    """1 for a dict, else 0."""
    return 1 if type(record) is dict else 0


def _others(block: bytes, bare: bytes | np.ndarray, alike: re.Pattern[bytes]) -> Iterator[tuple[int, bytes]]:
    """(number, line) of those that do not match."""
    at = number = 0
    while (end := alike.match(bare, at).end()) < len(block):  # type: ignore[union-attr,arg-type]
        number += block.count(b"\n", at, end)
        at = block.find(b"\n", end) + 1 or len(block)
        yield number, block[end:at]
        number += 1
