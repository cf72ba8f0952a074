"""Rows that are written alike, as a regular expression on bytes: their columns in the same order, with the same spaces between them.

It is matched with JSON whose escapes are gone (``block_signs.py``). What is matched is not given back, so nothing is tried twice.
"""

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

# Before, what repeats possessively could match wrongly where a part of it backtracks: https://github.com/python/cpython/issues/106052
EXACT = sys.version_info >= (3, 11, 5)
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
        gap: Behind an opening bracket and before a closing one.
        columns: Of the row, in order.
    """

    comma: bytes
    colon: bytes
    gap: bytes = b""
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
            return rb"(?:\[\]|%s)" % self.items(rb"(?:%s)(?:%s(?:%s))*+" % (items, self.comma, items))
        return SCALAR

    def items(self, pattern: bytes) -> bytes:
        """The pattern of a list with these items in it."""
        return rb"\[%s%s%s\]" % (self.gap, pattern, self.gap)

    def members(self, values: Mapping[str, bytes]) -> bytes:
        """The pattern of an object with these patterns of values; one that matches nothing where a key cannot be written as it is."""
        if not all(map(PLAIN.fullmatch, values)):
            return NOTHING
        members = [b'"%s"%s%s' % (re.escape(key.encode()), self.colon, value) for key, value in values.items()]
        return rb"\{%s%s%s\}" % (self.gap, self.comma.join(members), self.gap)


LINES = (Style(b", ", b": "), Style(b",", b":"))  # as nearly all are written
ITEMS = (*LINES, Style(rb",\s*+", rb":\s*+", rb"\s*+"))  # in arrays, which may be made to be read


def row_like(text: bytes, record: Mapping[str, Any], value: Callable[[str, Any, Style], bytes], styles: Iterable[Style]) -> bytes | None:
    """A pattern of rows that are written like this one; None where there is none.

    Args:
        text: The row, without escapes.
        record: What it holds.
        value: Gives the pattern of a column's values.
        styles: How it may be written.
    """
    for style in styles:
        style = replace(style, columns=tuple(record))
        row = style.members({column: value(column, given, style) for column, given in record.items()})
        if len(row) < LONGEST and re.fullmatch(row, text):
            return row
    return None


def rows_like(rows: Iterable[bytes | None]) -> bytes | None:
    """A pattern of one row, by the more frequent of these patterns; None where there are none."""
    frequent = [row for row, _ in Counter(row for row in rows if row).most_common(MOST)]
    return b"(?:%s)" % b"|".join(frequent) if frequent else None
