"""JSON without what makes rows ambiguous (a key given twice, NaN); what is wrong is told with its place. It knows nothing of rows."""

import json
import re
from pathlib import Path
from typing import Any, NoReturn

from ltune.data.rows import BadRow
from ltune.errors import UsageError

SPACE = re.compile(r"[ \t\r\n]*")
NOT_JSON = re.compile(r'"(?:[^"\\]|\\.)*"|(-?Infinity|NaN)')
MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\xff\xfe\x00\x00": "UTF-32", b"\x00\x00\xfe\xff": "UTF-32"}


class NotStrict(ValueError):
    """What the parser passes and we do not: a key given twice, NaN, Infinity."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object; one of two values of a key would be lost without a word."""
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise NotStrict(f"the key {json.dumps(twice)[:80]} is given twice")
    return made


def _no_constant(name: str) -> NoReturn:
    raise NotStrict(f"{name} is no JSON; write null or a number")


DECODER = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_once)
LENIENT = json.JSONDecoder()  # tells where a value ends that is JSON but not strict


# -- bytes to text --------------------------------------------------------------------------------------------------------------------


def encoding_of(raw: bytes) -> str | None:
    """Another encoding than UTF-8 that a file's first bytes give away."""
    for mark in sorted(MARKS, key=len, reverse=True):
        if raw.startswith(mark):
            return MARKS[mark]
    return "UTF-16" if len(raw) > 3 and 0 in (raw[0], raw[1]) and raw[:2] != b"\0\0" else None


def refuse_other_encodings(path: Path, raw: bytes) -> None:
    """UTF-16 and UTF-32 files, told by their first bytes."""
    if found := encoding_of(raw):
        raise UsageError(
            f"{path}:1: the file is {found}, not UTF-8.\nSave it anew:  iconv -f {found} -t UTF-8 {path.name} > utf8-{path.name}"
        )


def decoded(path: Path, raw: bytes, line: int = 1) -> str:
    """The bytes as text, without a byte order mark; ``line`` is where they begin.

    Raises:
        BadRow: Not UTF-8, with the line.
    """
    if line == 1:
        refuse_other_encodings(path, raw)
    try:
        return raw.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(path, error, line) from error


def not_utf8(path: Path, error: UnicodeDecodeError, line: int) -> BadRow:
    """What to say of bytes that begin in ``line``."""
    place = f"{path}:{line + error.object[: error.start].count(10)}"
    return BadRow(place, f"not UTF-8 text: {error.reason} (byte 0x{error.object[error.start]:02x}).")


# -- text to values -------------------------------------------------------------------------------------------------------------------


def parsed(path: Path, text: str, line: int) -> Any:
    """The one value that the text is.

    Raises:
        BadRow: It is not JSON, not strict, or more than one value.
    """
    begin = _skip(text, 0)
    try:
        value, end = DECODER.raw_decode(text, begin)
    except (ValueError, RecursionError) as error:
        raise BadRow(*malformed(path, text, line, error, begin)) from error
    if rest := text[end:].strip():
        what = "a comma stands after the value" if rest == "," else f"something follows the value: {rest[:40]!r}"
        raise BadRow(f"{path}:{line + text[:end].count(chr(10))}", f"malformed JSON: {what}; a line is one value.")
    return value


def malformed(path: Path, text: str, line: int, error: Exception, begin: int = 0, column: int = 0) -> tuple[str, str]:
    """(file:line, what is wrong) of the parser's error; ``line`` and ``column`` are where the text begins in the file."""
    if isinstance(error, json.JSONDecodeError):
        position, what = (
            error.pos,
            f"{_said(text, error)} (column {error.colno + (column if error.lineno == 1 else 0)}), got {_found(text, error.pos)}",
        )
    else:  # a key or a constant, whose place the parser does not tell; or objects nested too deeply, or a number too long
        found = next((match for match in NOT_JSON.finditer(text, begin) if match.group(1)), None) if "is no JSON" in str(error) else None
        position, what = found.start() if found else begin, _in_short(error)
    return f"{path}:{line + text[:position].count(chr(10))}", f"malformed JSON: {what}."


def _said(text: str, error: json.JSONDecodeError) -> str:
    closes = text[error.pos : error.pos + 1] in ("}", "]") and text[max(0, error.pos - 100) : error.pos].rstrip().endswith(",")
    if closes or error.msg.startswith("Illegal trailing comma"):  # as Python says it from 3.13 on
        return "a comma stands before the closing mark"
    return error.msg


def _found(text: str, position: int) -> str:
    rest = text[position : position + 24].strip()
    return repr(rest) if rest else "the end" if not text[position:].strip() else "white space"


def _in_short(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "arrays or objects stand too deeply in each other"
    return str(error) if isinstance(error, NotStrict) else str(error).partition(":")[0]


def _skip(text: str, position: int) -> int:
    """Past white space."""
    return SPACE.match(text, position).end()  # type: ignore[union-attr]
