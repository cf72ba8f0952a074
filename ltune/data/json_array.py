"""The items of a JSON array, one at a time; no more of the file is held than a stretch of its text."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from ltune.data.rows import BadRow
from ltune.data.strict_json import DECODER, LENIENT, NotStrict, malformed
from ltune.errors import UsageError

SPACE = re.compile(r"[ \t\r\n]*")
NEXT = re.compile(r"[ \t\r\n]*,[ \t\r\n]*(?=[^ \t\r\n\]])")
NEAR = 16  # characters; a fault this near to the end of the stretch may be its end


class Stretch:
    """A part of a file's text that moves along.

    Args:
        path: Of the file, for messages.
        blocks: Its text.
    """

    def __init__(self, path: Path, blocks: Iterator[str]) -> None:
        self.path, self.blocks = path, blocks
        self.text = next(blocks, "")
        self.position = 0
        self.line, self.column = 1, 0  # of the text's beginning in the file

    def skip(self) -> str:
        """Past white space; the character there, "" at the end."""
        while True:
            self.position = SPACE.match(self.text, self.position).end()  # type: ignore[union-attr]
            if self.position < len(self.text) or not self.grow():
                return self.text[self.position : self.position + 1]

    def grow(self) -> bool:
        """Drop what is passed and read on, about as much again as is left; False at the end of the file."""
        parts, wanted = [self.text[self.position :]], len(self.text) - self.position
        while wanted >= 0 and (block := next(self.blocks, "")):
            parts.append(block)
            wanted -= len(block)
        if len(parts) == 1:
            return False
        passed = self.text[: self.position]
        self.line += passed.count("\n")
        self.column = len(passed) - passed.rfind("\n") - 1 if "\n" in passed else self.column + len(passed)
        self.text, self.position = "".join(parts), 0
        return True

    def item(self) -> Any:
        """The value that begins here; a BadRow if it is JSON but not strict.

        Raises:
            UsageError: It is no JSON.
        """
        while True:
            try:
                value, end = self._decoded()
                if end < len(self.text) or not self.grow():
                    self.position = min(end, len(self.text))
                    return value
            except (ValueError, RecursionError) as error:
                if not self._may_go_on(error) or not self.grow():
                    self.refuse(error)

    def _decoded(self) -> tuple[Any, int]:
        try:
            return DECODER.raw_decode(self.text, self.position)
        except NotStrict as error:
            bad = BadRow(*self._told(error))
            return bad, LENIENT.raw_decode(self.text, self.position)[1]

    def _may_go_on(self, error: Exception) -> bool:
        if not isinstance(error, json.JSONDecodeError):
            return False
        return error.msg.startswith("Unterminated string") or error.pos >= len(self.text) - NEAR

    def refuse(self, error: Exception) -> NoReturn:
        """Raise what is wrong, with its place."""
        place, reason = self._told(error)
        raise UsageError(f"{place}: {reason}") from error

    def expected(self, what: str) -> NoReturn:
        """Something else should stand here."""
        self.refuse(json.JSONDecodeError(what, self.text, self.position))

    def _told(self, error: Exception) -> tuple[str, str]:
        return malformed(self.path, self.text, self.line, error, self.position, self.column)


def items(stretch: Stretch, ahead: Callable[[Stretch], Iterator[Any]] | None = None) -> Iterator[Any]:
    """The items of the array whose opening bracket the stretch stands at; an item that is not strict comes as a BadRow.

    Args:
        stretch: The file's text.
        ahead: Gives the items that it can from where the stretch stands, and moves it behind their commas; None: ``well_inside``.

    Raises:
        UsageError: It is not JSON; nothing behind that place can be read.
    """
    stretch.position += 1
    mark = stretch.skip()
    while mark != "]":
        yield from (ahead or well_inside)(stretch)
        yield stretch.item()
        mark = stretch.skip()
        if mark not in (",", "]") or not mark:
            stretch.expected("Expecting ',' or ']'" if mark else "the file ends before the array does")
        if mark == ",":
            stretch.position += 1
            if stretch.skip() == "]":
                stretch.expected("a comma stands before the closing mark")
    stretch.position += 1
    if stretch.skip():
        stretch.expected("Nothing may follow the closing ']'")


def well_inside(stretch: Stretch) -> Iterator[Any]:
    """The items that another one follows in the same stretch, which are nearly all; stops before one that needs a closer look."""
    decode, text, follows = DECODER.raw_decode, stretch.text, NEXT.match
    try:
        while True:
            value, end = decode(text, stretch.position)
            comma = follows(text, end)
            if comma is None:
                return
            yield value
            stretch.position = comma.end()
    except (ValueError, RecursionError):
        return
