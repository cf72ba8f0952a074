"""A quick look at a JSON array of rows, a stretch at a time. As in ``lines.py``, the reader and ``to_row`` have the last word."""

import copy
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import orjson

from ltune.data.block_signs import ends_within_text, keys_written, without_escapes
from ltune.data.json_array import NEXT, Stretch, items, well_inside
from ltune.data.lines import FIRST, NULL, Form, is_object
from ltune.data.read import checked, text_blocks
from ltune.data.rows import BadRow
from ltune.data.strict_json import DECODER
from ltune.data.usual import keys_in
from ltune.data.written import ITEMS
from ltune.errors import UsageError

TRIES = 8  # places where an item may begin, from the end of a stretch
OPENING = re.compile(r'\{\s*"[^"\\]{0,80}"\s*:')  # with a first key, which tells an item from what stands in it


def scan_array(path: Path, prefix: str, wanted: int, form: Form | None) -> int | None:
    """The number of items; None where the file is no array.

    Args:
        path: The file.
        prefix: Stands before the numbers of rows in messages.
        wanted: So many items are looked at, no more.
        form: What they must be; None: any object.

    Raises:
        UsageError: The first that is not.
    """
    with path.open("rb") as file:
        stretch = Stretch(path, text_blocks(path, file))
        return Array(stretch, prefix, form).scan(wanted) if stretch.skip() == "[" else None


MATCHED = object()  # in an item's stead


class Array:
    """One array."""

    def __init__(self, stretch: Stretch, prefix: str, form: Form | None) -> None:
        self.stretch, self.prefix, self.form = stretch, prefix, form
        self.test = form.test if form else is_object
        self.alike: re.Pattern[bytes] | None = None  # an item and the comma behind it
        self.number = 0  # items that were looked at
        self.keys = 0  # in those that were plain
        self.passed: int | None = None  # items before those that the quick parser has just read; None: the reader's has

    def scan(self, wanted: int) -> int:
        """Look at so many items."""
        for record in islice(items(self.stretch, self._quickly), wanted):
            self.number += 1
            if record is MATCHED:
                continue
            try:
                if self.passed is not None and (keys := self.test(record)):
                    self.keys += keys
                    continue
            except (KeyError, TypeError):
                pass
            self._look_closely(record)
        return self.number

    def _quickly(self, stretch: Stretch) -> Iterator[Any]:
        """The items up to the last that begins in this stretch: matched, or parsed as one; item by item where that fails."""
        yield from repeat(MATCHED, self._match(stretch))
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
                parsed = orjson.loads(f"[{before[:-1]}]") if before.endswith(",") and NULL.decode() not in before else None
            except ValueError:
                continue
            if parsed:
                self.passed, self.keys = self.number, 0
                yield from parsed
                if self.form and self.keys != keys_written(before.encode()):
                    self._once_more()
                self.passed = None
                stretch.position = end
                return
        yield from well_inside(stretch)

    def _match(self, stretch: Stretch) -> int:
        """Move past the items that are written like the first ones; how many they are."""
        if self.form and self.number == 0:
            self.alike = self._alike(stretch, self.form)
        bare = None if self.alike is None else without_escapes(stretch.text[stretch.position :].encode())
        if bare is None or self.alike is None or ends_within_text(bare):
            return 0
        end = number = 0
        while found := self.alike.match(bare, end):  # type: ignore[arg-type]
            end, number = found.end(), number + 1
        if end:
            passed = stretch.text[stretch.position :].encode()[:end]
            stretch.position += len(passed.decode())
        return number

    def _alike(self, stretch: Stretch, form: Form) -> re.Pattern[bytes] | None:
        item = form.alike(_first(stretch), ITEMS)
        return re.compile(rb"%s\s*+,\s*+(?=\{)" % item) if item else None

    def _look_closely(self, record: Any) -> None:
        if self.passed is None:
            self._check(self.number, record)
            return
        try:
            self._check(self.number, record)
            self.keys += keys_in(record)
        except UsageError:
            self._once_more()

    def _once_more(self) -> None:
        """As the reader reads them, the items from the last that it has read to this one."""
        assert self.passed is not None
        again = copy.copy(self.stretch)
        again.blocks = iter(())
        for number in range(self.passed + 1, self.number + 1):
            self._check(number, again.item())
            again.skip()
            again.position += 1  # past the comma
            again.skip()

    def _check(self, number: int, value: Any) -> None:
        place = f"{self.prefix}{number}"
        record = checked(place, value)
        if isinstance(record, BadRow):
            raise record
        if self.form:
            self.form.check(place, record)


def _first(stretch: Stretch) -> Iterator[bytes]:
    """The texts of the items that it begins with."""
    at = stretch.position
    with suppress(ValueError, RecursionError):
        for _ in range(FIRST):
            end = DECODER.raw_decode(stretch.text, at)[1]
            yield stretch.text[at:end].encode()
            comma = NEXT.match(stretch.text, end)
            if comma is None:
                return
            at = comma.end()
