"""A quick look at the files of rows, before anything heavy is imported: the first row that is no JSON or no row is told at once.

What is quick passes over what is sound (``lines.py``, ``array_scan.py``, ``csv_scan.py``, ``table_scan.py``). What it does not pass is
handed to the reader itself and to ``to_row``, which have the last word and all the words; so the look refuses nothing that they take, and
they read all of it again later.
"""

import sys
import time
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path

from ltune.data.array_scan import scan_array
from ltune.data.contents import identity, note_sound, was_sound
from ltune.data.csv_scan import scan_csv
from ltune.data.formats import settled
from ltune.data.lines import Form, Lines
from ltune.data.read import LINES, first_rows, place_prefixes, read, read_file
from ltune.data.rows import Row
from ltune.data.side_by_side import in_order
from ltune.data.sources import Source
from ltune.data.table_scan import scan_table

MOST = 2 << 30  # bytes, of all files; a look at more takes longer than it is worth, and is left to the reader
LONG = 0.3  # seconds for each file for which there is no quick way


def scan(sources: list[tuple[Source, int | None]], memory: str | Path, rows: type[Row] | None = None) -> None:
    """Look at the files, in order.

    Args:
        sources: Each with how many rows are read of it; None: all.
        memory: Where it is remembered which files are sound (``contents.py``).
        rows: The kind of rows that they must hold; None: any objects.

    Raises:
        UsageError: The first row that is malformed or no such row, in the reader's and ``to_row``'s words.
    """
    left = MOST
    for source, limit in sources:
        with suppress(OSError):  # the reader says what is wrong with such files
            left -= sum(path.stat().st_size for path in source.files)
            if left < 0:
                return
            wanted = sys.maxsize if source.num_samples is not None or limit is None else limit
            form = None if rows is None or source.num_samples is not None else _form(source, wanted, rows)
            _scan_source(source, wanted, form, memory)


def _form(source: Source, wanted: int, rows: type[Row]) -> Form | None:
    """What its rows must be; the first of them tells."""
    head = list(islice(first_rows(read(source), wanted), 1))
    return Form(settled(source, head, rows), rows)


def _scan_source(source: Source, wanted: int, form: Form | None, memory: str | Path) -> None:
    for path, prefix in zip(source.files, place_prefixes(source.files), strict=True):
        asked = _asked(form, wanted)
        before = identity(path)
        seen = None if was_sound(path, memory, asked) else _scan_file(path, prefix, wanted, form)
        if seen is not None:
            note_sound(path, memory, asked, before)
        if wanted < sys.maxsize:
            if seen is None:  # how many rows of the next file are read is not known
                return
            wanted -= seen


def _asked(form: Form | None, wanted: int) -> str:
    """What is looked for, for the memory."""
    if form is None:
        return f"objects {wanted}"
    source = form.source
    return repr((form.rows.__name__, source.format, sorted((source.columns or {}).items()), sorted((source.tags or {}).items()), wanted))


def _scan_file(path: Path, prefix: str, wanted: int, form: Form | None) -> int | None:
    """The number of rows seen; None for a kind of file of which the beginning is looked at, or nothing."""
    if path.suffix in LINES and path.suffix != ".txt":
        return _scan_lines(path, prefix, wanted, form)
    if path.suffix == ".json" and (seen := scan_array(path, prefix, wanted, form)) is not None:
        return seen
    if form is None:
        return None
    look = {".csv": scan_csv, ".parquet": scan_table, ".arrow": scan_table}.get(path.suffix)
    if look is not None and (seen := look(path, prefix, wanted, form)) is not None:
        return seen
    _look_for_a_moment(path, prefix, wanted, form)
    return None


def _scan_lines(path: Path, prefix: str, wanted: int, form: Form | None) -> int:
    look, lines, rows = Lines(path, form), 0, 0
    with closing(in_order(look, look.stretches())) as found:
        for seen in found:
            lines, rows = lines + seen.lines, rows + seen.rows
            if rows >= wanted:
                break
            if seen.refused is not None:
                look.refuse(prefix, lines + 1, seen.refused)
    return min(rows, wanted)


def _look_for_a_moment(path: Path, prefix: str, wanted: int, form: Form) -> None:
    """At some ten thousand rows."""
    end = time.monotonic() + LONG
    for place, record in islice(read_file(path, prefix=prefix), wanted):
        form.check(place, record)
        if time.monotonic() > end:
            return
