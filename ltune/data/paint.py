"""A row's tokens for a terminal, or for a file: what is trained and what is a control token can be seen."""

import os
from collections.abc import Iterable
from itertools import groupby
from typing import TextIO

from ltune.data.segments import Token

PLAIN = "\033[0m"
GREEN, BOLD_GREEN, CYAN, GREY = "\033[32m", "\033[1;32m", "\033[36m", "\033[90m"
LEGEND_COLOURED = f"{GREEN}trained{PLAIN} ignored {BOLD_GREEN}control, trained{PLAIN} {CYAN}control, ignored{PLAIN} {GREY}padding{PLAIN}"
LEGEND_MARKED = "⟦trained⟧ ignored ‹control›"


def in_colour(file: TextIO) -> bool:
    """A terminal, and nobody who asks for none (NO_COLOR set to anything)."""
    return file.isatty() and not os.environ.get("NO_COLOR")


def paint(tokens: Iterable[Token], coloured: bool) -> str:
    """What is trained in green, and control tokens in bold green or cyan; or else ⟦trained⟧ and ‹control›."""
    return _coloured(tokens) if coloured else _marked(tokens)


def _coloured(tokens: Iterable[Token]) -> str:
    colours = {(True, True): BOLD_GREEN, (True, False): GREEN, (False, True): CYAN, (False, False): ""}
    shown = []
    for kind, run in groupby(tokens, key=lambda token: (token.trained, token.control)):
        text = printable("".join(token.text for token in run))
        shown.append(f"{colours[kind]}{text}{PLAIN}" if colours[kind] else text)
    return "".join(shown)


def _marked(tokens: Iterable[Token]) -> str:
    shown = []
    for trained, run in groupby(tokens, key=lambda token: token.trained):
        text = "".join(f"‹{printable(token.text)}›" if token.control else printable(token.text) for token in run)
        shown.append(f"⟦{text}⟧" if trained else text)
    return "".join(shown)


def printable(text: str) -> str:
    """A row must not steer the terminal that shows it."""
    return "".join(character if character.isprintable() or character in "\n\t" else ascii(character)[1:-1] for character in text)
