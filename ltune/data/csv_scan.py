"""A quick look at a CSV file, a stretch at a time: a regular expression passes over rows that are as usual.

A row that it does not match is handed to the reader and to ``to_row``, which have the last word. Behind a row that is quoted in a way of
its own, it is not known for certain where the next one begins, and the file is left to the reader.
"""

import csv
import re
from contextlib import closing
from io import BytesIO, StringIO
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ltune.data.block_signs import LINE_END, QUOTE
from ltune.data.lines import Form
from ltune.data.read import Numbered, checked, csv_rows
from ltune.data.rows import BadRow
from ltune.data.side_by_side import in_order
from ltune.data.usual import Question
from ltune.data.written import EXACT
from ltune.errors import UsageError

STRETCH = 512 << 10  # bytes that are looked at in one go
LONGEST = 4 << 20  # bytes of a row, or of the header
UNUSUAL = 10_000  # rows that are looked at closely; where there are more, the look would take as long as the reader

QUOTED = rb'[^"]*+(?:""[^"]*+)*+"'
ANY = rb'(?:"%s|[^",\r\n]*+)' % QUOTED
SOME = rb'(?:"(?!"[,\r\n])%s|[^",\r\n]++)' % QUOTED
EMPTY = rb'(?:"")?+'
MARK = rb'(?i:"(?:true|false|1|0)"|true|false|1|0)'
ROW_END = rb"(?:\r?\n|\Z)"
TO_ROW_END = re.compile(rb'(?:[^"\n]*+"[^"]*+")*+[^"\n]*+\n')  # from outside of quotes
MARK_OF_ORDER = b"\xef\xbb\xbf"


class Seen(NamedTuple):
    """What a stretch has up to its first row that is refused.

    Args:
        rows: How many.
        unusual: How many of them were looked at closely.
        refused: Where in the file that begins; None: none is.
    """

    rows: int
    unusual: int
    refused: int | None = None


def scan_csv(path: Path, prefix: str, wanted: int, form: Form) -> int | None:
    """The number of rows; None where the file is left to the reader.

    Args:
        path: The file.
        prefix: Stands before the numbers of rows in messages.
        wanted: So many rows are looked at, no more.
        form: What they must be.

    Raises:
        UsageError: The first that is not.
    """
    header, begin = _header(path)
    usual = _usual_row(header, form)
    if usual is None:
        return None
    look, rows, unusual = Rows(path, header, form, usual), 0, 0
    stretches = range(begin, path.stat().st_size, STRETCH)
    with closing(in_order(look.count_quotes, stretches)) as counts:
        within = [count % 2 == 1 for count in accumulate(counts, initial=0)]
    with closing(in_order(look, list(zip(stretches, within, within[1:], strict=False)))) as found:
        for seen in found:
            rows, unusual = rows + seen.rows, unusual + seen.unusual
            if rows >= wanted:
                break
            if seen.refused is not None:
                look.refuse(prefix, rows + 1, seen.refused)
            if seen.refused is not None or unusual > UNUSUAL:
                return None
    return min(rows, wanted)


class Rows:
    """Looks at a file, a stretch at a time: the rows behind the line ends that are in the stretch and in no quotes.

    Args:
        path: The file.
        header: Its columns.
        form: What its rows must be.
        usual: Matches rows that are so, as many as there are.
    """

    def __init__(self, path: Path, header: list[str], form: Form, usual: re.Pattern[bytes]) -> None:
        self.path, self.header, self.form, self.usual = path, header, form, usual
        row = ANY + (b"," + ANY) * (len(header) - 1)
        self.row = re.compile(b"(?:%s)?+%s" % (row, ROW_END))  # blank ones too

    def count_quotes(self, begin: int) -> int:
        """In the stretch that begins there."""
        with self.path.open("rb") as file:
            file.seek(begin)
            return _count(file.read(STRETCH), QUOTE)

    def __call__(self, stretch: tuple[int, bool, bool]) -> Seen:
        """Look at the stretch that begins there; it begins within quotes or not, and so it ends."""
        begin, within, ends_within = stretch
        text = self._text(begin, ends_within)
        at = _first_row(text, within)
        if at is None or at > STRETCH:
            return Seen(0, 0)
        rows = unusual = 0
        plain = b"\0" not in text and (text.isascii() or _is_utf8(text[at:]))
        while at < len(text):
            end = self.usual.match(text, at).end() if plain else at  # type: ignore[union-attr]
            rows, at = rows + _rows_in(text, at, end), end
            if at < len(text):
                row = self.row.match(text, at)
                try:
                    if row is None:
                        raise UsageError("not a row, or one that is quoted in a way of its own")
                    found = self._look_closely(row.group())
                except UsageError:
                    return Seen(rows, unusual, begin + at)
                rows, unusual, at = rows + found, unusual + 1, row.end()
        return Seen(rows, unusual)

    def refuse(self, prefix: str, number: int, offset: int) -> None:
        """Raise what is wrong with the row of this number, which begins there."""
        with self.path.open("rb") as file:
            blocks = (file.read(min(STRETCH, offset - begin)) for begin in range(0, offset, STRETCH))
            line = 1 + sum(_count(block, LINE_END) for block in blocks)
            self._check_first(prefix, csv_rows(self.path, file, self.header, line, number))

    def _text(self, begin: int, within: bool) -> bytes:
        """The stretch, which ends within quotes or not, and what is left of its last row."""
        with self.path.open("rb") as file:
            file.seek(begin)
            parts = [file.read(STRETCH)]
            while line := file.readline(LONGEST):
                parts.append(line)
                within ^= line.count(b'"') % 2 == 1
                if file.tell() > begin + STRETCH + LONGEST or (len(line) == LONGEST and not line.endswith(b"\n")):
                    parts.append(b"\r")  # so that what is cut off is no row
                    break
                if not within:
                    break
        return b"".join(parts)

    def _look_closely(self, row: bytes) -> int:
        """How many rows this is: 0 where it is blank.

        Raises:
            UsageError: It is refused.
        """
        return self._check_first("", csv_rows(self.path, BytesIO(row), self.header, 2))

    def _check_first(self, prefix: str, rows: Numbered) -> int:
        for number, found in rows:
            place = f"{prefix}{number}"
            record = checked(place, found)
            if isinstance(record, BadRow):
                raise record
            self.form.check(place, record)
            return 1
        return 0


def _header(path: Path) -> tuple[list[str], int]:
    """The columns, and where their line ends; no columns where they are not plain."""
    with path.open("rb") as file:
        begin = len(MARK_OF_ORDER) if file.read(len(MARK_OF_ORDER)) == MARK_OF_ORDER else 0
        file.seek(begin)
        row = re.match(rb"%s(?:,%s)*+\r?\n" % (ANY, ANY), file.read(LONGEST))
    if row is None or b"\0" in row.group():
        return [], 0
    names = next(csv.reader(StringIO(row.group().decode(), newline="")))
    return names, begin + row.end() - 1


def _usual_row(header: list[str], form: Form) -> re.Pattern[bytes] | None:
    """A pattern of rows that are as usual; None where nothing is known."""
    kind = form.usual
    if not EXACT or not isinstance(kind, Question) or not kind.needed <= set(header) or ("kto_tag" in header and kind.marks == ["label"]):
        return None

    def value(column: str) -> bytes:
        if column in kind.marks:
            return MARK
        if column == kind.prompt or len(header) == 1:  # a row of one column that is empty is a blank line
            return SOME
        return EMPTY if column in kind.apart else ANY

    return re.compile(b"(?:%s%s)*+" % (b",".join(map(value, header)), ROW_END))


def _first_row(text: bytes, within: bool) -> int | None:
    """Where the first row begins behind a line end."""
    outside = text.find(b'"') + 1 if within else 0
    found = TO_ROW_END.match(text, outside) if outside or not within else None
    return found.end() if found else None


def _rows_in(text: bytes, begin: int, end: int) -> int:
    """How many rows: the line ends that are in no quotes, and the file's end where it has none."""
    signs = np.frombuffer(text, np.uint8)[begin:end]
    ends, quotes = np.flatnonzero(signs == LINE_END), np.flatnonzero(signs == QUOTE)
    outside = np.count_nonzero(np.searchsorted(quotes, ends) % 2 == 0)
    return int(outside) + (end > begin and text[end - 1] != LINE_END)


def _count(text: bytes, sign: int) -> int:
    return int(np.count_nonzero(np.frombuffer(text, np.uint8) == sign))


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
