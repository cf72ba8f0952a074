"""Files to records. One reader a kind of file; what is malformed is named by file and line. It refuses to know what a record means.

json (an array, or an object a line), jsonl and ndjson, csv, txt (a row is a line; its column is ``text``), each also with .gz; parquet and
arrow (``tables.py``). Blank lines, a byte order mark and Windows' line ends are no content.
"""

import codecs
import csv
import gzip
import hashlib
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np

from ltune.data.json_array import Stretch, items
from ltune.data.rows import BadRow
from ltune.data.strict_json import DECODER, decoded, not_utf8, parsed, refuse_other_encodings
from ltune.data.tables import arrow, parquet
from ltune.errors import UsageError

if TYPE_CHECKING:
    from ltune.data.sources import Source

LINES = (".jsonl", ".ndjson", ".txt")
ZIPPED = (*LINES, ".json", ".csv")
KINDS = (*ZIPPED, ".parquet", ".arrow")
BLOCK = 1 << 20  # bytes of an array that are read at once; what is parsed of more is no longer in the processor's cache

BadRows = Literal["error", "skip"]
Record = tuple[str, Any]  # place, {column: value}; or, where bad rows are skipped, place and BadRow
Numbered = Iterator[tuple[int, Any]]


def read(source: "Source", bad_rows: BadRows = "error") -> Iterator[Record]:
    """(place, record) of every row, in order; with ``num_samples``, of the rows that are drawn, in the order drawn.

    Args:
        source: Its files, as ``resolve`` found them.
        bad_rows: error: the first bad row is raised; skip: the BadRow comes in the record's stead.

    Raises:
        UsageError: An empty file, malformed content (with file:line), or a row that is no object. With ``skip``, only what leaves the
            rest of a file unreadable.
    """
    if source.num_samples is None:
        return _everything(source, bad_rows)
    return _drawn(source, source.num_samples, bad_rows)


def _everything(source: "Source", bad_rows: BadRows) -> Iterator[Record]:
    prefixes = place_prefixes(source.files)
    return (row for path, prefix in zip(source.files, prefixes, strict=True) for row in read_file(path, bad_rows, prefix))


def _drawn(source: "Source", wanted: int, bad_rows: BadRows) -> Iterator[Record]:
    """As LLaMA-Factory draws them: a seeded permutation's first rows, and further ones at random where there are not as many."""
    rows = sum(1 for _ in _everything(source, bad_rows))
    random = np.random.RandomState(source.seed)
    drawn = random.permutation(rows)[:wanted]
    if len(drawn) < wanted:
        drawn = np.concatenate([drawn, random.choice(rows, wanted - len(drawn))])
    needed = set(drawn.tolist())
    kept = {number: row for number, row in enumerate(_everything(source, bad_rows)) if number in needed}
    yield from (kept[number] for number in drawn.tolist())


def read_file(path: Path, bad_rows: BadRows = "error", prefix: str | None = None) -> Iterator[Record]:
    """The rows of one file, as ``read`` gives them; ``prefix`` stands before their numbers."""
    prefix, empty = prefix or place_prefixes((path,))[0], True
    for number, record in _reader(path)(path):
        empty = False
        if type(record) is not dict:
            record = checked(f"{prefix}{number}", record)
        if bad_rows == "error" and isinstance(record, BadRow):
            raise record
        yield f"{prefix}{number}", record
    if empty:
        raise UsageError(f"{path}: the file is empty: it has no rows.")


def checked(place: str, record: Any) -> Any:
    """The record; a BadRow in its stead where it is no object."""
    if type(record) is dict or isinstance(record, BadRow):
        return record
    return BadRow(place, f"a row must be an object of columns; got {repr(record)[:80]}.")


def kind_of(path: Path) -> str:
    """The ending that tells the reader; ``.gz`` behind it is passed over."""
    zipped = path.suffix == ".gz"
    kind = Path(path.stem).suffix if zipped else path.suffix
    return "" if zipped and kind not in ZIPPED else kind


def _reader(path: Path):
    return {".csv": _csv, ".parquet": parquet, ".arrow": arrow, ".json": _json, ".txt": _txt}.get(kind_of(path), _jsonl)


def place_prefixes(files: Sequence[Path]) -> list[str]:
    """What stands before the number in each file's places: lines where a row is a line, else rows, counted from 1.

    A file is called by its name, or, where two have the same, by its path from the folder that they share.
    """
    names = [file.name for file in files]
    if len(set(names)) < len(names):
        shared = os.path.commonpath([file.absolute() for file in files])
        names = [os.path.relpath(file.absolute(), shared) for file in files]
    return [f"{name}:" if kind_of(file) in LINES else f"{name} row " for file, name in zip(files, names, strict=True)]


def sha256(path: str | Path) -> str:
    """Of the file's contents, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- one function a kind of file ------------------------------------------------------------------------------------------------------


def _jsonl(path: Path) -> Numbered:
    decode = DECODER.raw_decode
    for number, line in _lines(path):
        try:  # the way of nearly all lines
            text = line.decode()
            record, end = decode(text)
            if text[end:].strip() == "":
                yield number, record
                continue
        except (ValueError, RecursionError):
            if not line.strip():
                continue
        yield from json_line(path, number, line)


def json_line(path: Path, number: int, line: bytes) -> Numbered:
    """What a line of a .jsonl holds, with its number: a value, a BadRow, or nothing where it is blank."""
    try:
        text = decoded(path, line, number).rstrip()
        if text.strip():  # there may have been a mark and no more
            yield number, parsed(path, text, number)
    except BadRow as error:
        if number == 1 and line.strip() == b"[":
            raise UsageError(f"{path}:1: the file is one JSON array, not an object a line.\nName it  {path.stem}.json") from error
        yield number, error


def _txt(path: Path) -> Numbered:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            text = decoded(path, line, number).rstrip("\r\n")
        except BadRow as error:
            yield number, error
        else:
            yield number, {"text": text} if text.strip() else BadRow(f"{path}:{number}", "the line holds nothing but white space.")


def _json(path: Path) -> Numbered:
    """An array row by row. Some tools name files of lines .json too; of such, the text is held as a whole."""
    with _opened(path) as file:
        stretch = Stretch(path, text_blocks(path, file))
        if stretch.skip() == "[":
            yield from enumerate(items(stretch), 1)
            return
        text = stretch.text + "".join(stretch.blocks)
    if _is_one_object(text):
        raise UsageError(f"{path}: the file holds one object; it must be an array of objects, or an object a line.")
    for number, line in enumerate(text.split("\n"), stretch.line):
        if line.strip():
            try:
                yield number, parsed(path, line, number)
            except BadRow as error:
                yield number, error


def _is_one_object(text: str) -> bool:
    """Whether an object that goes over several lines is all there is."""
    if "\n" not in text.strip():
        return False
    try:
        return "\n" in text.strip()[: DECODER.raw_decode(text.strip())[1]]
    except (ValueError, RecursionError):
        return False


def _csv(path: Path) -> Numbered:
    with _opened(path) as file:
        yield from csv_rows(path, file)


def csv_rows(path: Path, file: IO[bytes], header: list[str] | None = None, line: int = 1, number: int = 1) -> Numbered:
    """(number, record) of each row.

    Args:
        path: For messages.
        file: From the header on; where ``header`` is given, from a row on.
        header: The columns.
        line: Number of the first line that the file gives.
        number: Of the first row.
    """
    csv.field_size_limit(2**31 - 1)
    reader, before = csv.reader(_text_lines(path, file, line), strict=True), line - 1
    try:
        if header is None:
            header = next(reader, [])
            _check_header(path, header)
            line = before + reader.line_num + 1
        for fields in reader:
            if fields:
                yield number, _record(path, before + reader.line_num, header, fields)
                number += 1
            line = before + reader.line_num + 1
    except csv.Error as error:
        raise UsageError(f"{path}:{line}: malformed CSV: {error}; the row begins there.") from error


def _check_header(path: Path, names: list[str]) -> None:
    if len(names) == 1 and (other := next((mark for mark in ";\t|" if mark in names[0]), None)):
        raise UsageError(f"{path}:1: the header is one column, {names[0][:80]!r}; columns are separated by commas, not {other!r}.")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{path}:1: the header names the column {twice!r} twice.")


def _record(path: Path, line: int, header: list[str], fields: list[str]) -> dict[str, str] | BadRow:
    if len(fields) != len(header):
        return BadRow(f"{path}:{line}", f"the row has {len(fields)} fields and the header {len(header)}.")
    return dict(zip(header, fields, strict=True))


# -- bytes ----------------------------------------------------------------------------------------------------------------------------


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _lines(path: Path) -> Numbered:
    """(number, bytes) of each line, counted from 1; other encodings than UTF-8 are refused by the first."""
    with _opened(path) as file:
        lines = _unzipped(path, file)
        first = next(lines, b"")
        refuse_other_encodings(path, first)
        yield 1, first
        yield from enumerate(lines, 2)


def _text_lines(path: Path, file: IO[bytes], first: int) -> Iterator[str]:
    for number, line in enumerate(_unzipped(path, file), first):
        if b"\0" in line and number > 1:
            raise UsageError(f"{path}:{number}: holds a null byte, which is no text.")
        yield decoded(path, line, number)


def _unzipped(path: Path, lines: Iterable[bytes]) -> Iterator[bytes]:
    try:
        yield from lines
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UsageError(f"{path}: not a whole gzip file: {error}") from error


def text_blocks(path: Path, file: IO[bytes]) -> Iterator[str]:
    """The file's text, BLOCK bytes at a time."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    line = 1
    for number, block in enumerate(_unzipped(path, iter(lambda: file.read(BLOCK), b""))):
        if not number:
            refuse_other_encodings(path, block)
        try:
            yield decoder.decode(block)
        except UnicodeDecodeError as error:
            raise not_utf8(path, error, line) from error
        line += block.count(b"\n")
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise not_utf8(path, error, line) from error


def first_rows(records: Iterator[Record], limit: int | None) -> Iterator[Record]:
    """No more than ``limit``."""
    return records if limit is None else islice(records, limit)
