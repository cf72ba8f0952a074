"""Rows that are written alike, as a regular expression on bytes: their columns in the same order, with the same spaces between them.

It is matched with JSON whose escapes are gone (``block_signs.py``). What is matched is not given back, so nothing is tried twice.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

TEXT, SOME_TEXT, TEXT_OR_NULL = rb'"[^"]*+"', rb'"[^"]++"', rb'(?:"[^"]*+"|null)'
EMPTY = rb'(?:""|null|\[\]|false)'
MARK = rb"(?:true|false)"
SCALAR = rb'(?:"[^"]*+"|null|true|false|-?(?:0|[1-9]\d{0,15}+)(?:\.\d{1,16}+)?+)'
NOTHING = rb"(?!)"
PLAIN = re.compile(r"[^\"\\\x00-\x1f]+")  # a name that JSON writes as it is
MOST = 4  # ways of writing rows that are tried
LONGEST = 20_000  # bytes of a pattern


@dataclass(frozen=True)
class Style:
    """How a row is written.

    Args:
        comma: What stands between members.
        colon: Between key and value.
        columns: Of the row, in order.
    """

    comma: bytes
    colon: bytes
    columns: tuple[str, ...] = ()

    def has(self, column: str | None) -> bool:
        """Whether the row has that column."""
        return column in self.columns

    def like(self, given: Any) -> bytes:
        """The pattern of any value of that shape: the same keys in objects, items alike in lists."""
        if type(given) is dict:
            return self.members({key: self.like(value) for key, value in given.items()})
        if type(given) is list:
            items = b"|".join(dict.fromkeys(map(self.like, given))) or NOTHING
            return rb"\[(?:(?:%s)(?:%s(?:%s))*+)?+\]" % (items, self.comma, items)
        return SCALAR

    def members(self, values: Mapping[str, bytes]) -> bytes:
        """The pattern of an object with these patterns of values; one that matches nothing where a key cannot be written as it is."""
        if not all(map(PLAIN.fullmatch, values)):
            return NOTHING
        return rb"\{%s\}" % self.comma.join(b'"%s"%s%s' % (re.escape(key.encode()), self.colon, value) for key, value in values.items())


def row_like(line: bytes, record: Mapping[str, Any], value: Callable[[str, Any, Style], bytes]) -> bytes | None:
    """A pattern of rows that are written like this one; None where there is none.

    Args:
        line: The row, without escapes.
        record: What it holds.
        value: Gives the pattern of a column's values.
    """
    for comma, colon in ((b", ", b": "), (b",", b":")):  # as nearly all are written
        style = Style(comma, colon, tuple(record))
        row = style.members({column: value(column, given, style) for column, given in record.items()}) + rb"\r?\n"
        if len(row) < LONGEST and re.fullmatch(row, line):
            return row
    return None


def rows_like(rows: Iterable[bytes | None]) -> re.Pattern[bytes] | None:
    """Any number of rows that match one of the more frequent of these patterns."""
    frequent = [row for row, _ in Counter(row for row in rows if row).most_common(MOST)]
    return re.compile(b"(?:%s)*+" % b"|".join(frequent)) if frequent else None
