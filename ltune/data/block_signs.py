"""Blocks of JSON text made easy to match: no escapes any more, and nothing that JSON does not allow within strings."""

import numpy as np

QUOTE, COLON, BACKSLASH, LETTER_U, LINE_END = b'":\\u\n'
FILLER = b"x"[0]
SPACE = b" "[0]  # what is below is a control character
ESCAPES = np.zeros(256, bool)  # what may follow a backslash
ESCAPES[list(b'"\\/bfnrtu')] = True
HEXADECIMAL = np.full(256, 16, np.int32)  # what a digit counts; 16: it is none
for digits in (b"0123456789abcdef", b"0123456789ABCDEF"):
    HEXADECIMAL[list(digits)] = range(16)
PLACES = np.array([4096, 256, 16, 1], np.int32)


def without_escapes(block: bytes) -> bytes | np.ndarray | None:
    """The block, as long as it was, with each escape's two first characters made letters.

    None where that may hide a fault: control characters beside line ends, escapes that JSON does not know, a null character, half a
    surrogate pair, bytes that are not UTF-8.
    """
    signs = np.frombuffer(block, np.uint8)
    control = np.count_nonzero(signs < SPACE) - np.count_nonzero(signs == LINE_END)
    if control and control != block.count(b"\r\n"):
        return None
    if not block.isascii():
        try:
            block.decode()
        except UnicodeDecodeError:
            return None
    return _without(signs) if b"\\" in block else block


def ends_within_text(bare: bytes | np.ndarray) -> bool:
    """Whether a line ends between quotation marks, in what ``without_escapes`` gives and what begins outside of them."""
    signs = np.frombuffer(bare, np.uint8)
    ends = np.flatnonzero(signs == LINE_END)
    # The marks before each end: an odd number before the first that is within a text
    return bool(len(ends) and (np.searchsorted(np.flatnonzero(signs == QUOTE), ends) % 2).any())


def _without(signs: np.ndarray) -> np.ndarray | None:
    at = np.flatnonzero(signs == BACKSLASH)
    if (apart := np.diff(at, prepend=-2)).min() == 1:  # in a row of backslashes the first, the third ... begin an escape
        rows = np.flatnonzero(apart != 1)
        at = at[(np.arange(len(at)) - np.repeat(rows, np.diff(rows, append=len(at)))) % 2 == 0]
    if at[-1] + 1 == len(signs):
        return None
    follows = signs[at + 1]
    if not ESCAPES[follows].all() or not _are_characters(signs, at[follows == LETTER_U]):
        return None
    made = signs.copy()
    made[at] = FILLER
    made[at + 1] = FILLER
    return made


def _are_characters(signs: np.ndarray, at: np.ndarray) -> bool:
    """Whether the escapes with four digits that begin there are characters, and none is the null character."""
    if not len(at):
        return True
    if at[-1] + 6 > len(signs):
        return False
    digits = HEXADECIMAL[signs[at[:, None] + np.arange(2, 6)]]  # (escapes, 4)
    code = digits @ PLACES
    high, low = code >> 10 == 0xD800 >> 10, code >> 10 == 0xDC00 >> 10
    pairs = np.count_nonzero(high[:-1] & low[1:] & (np.diff(at) == 6))
    return bool(digits.max() < 16 and code.all() and np.count_nonzero(high) == np.count_nonzero(low) == pairs)


def keys_written(block: bytes) -> int:
    """Quotation marks before a colon, perhaps with a space between, and not behind a backslash: of keys, as they are mostly written."""
    signs = np.frombuffer(block, np.uint8)
    colon = (signs[2:-1] == COLON) | ((signs[2:-1] == SPACE) & (signs[3:] == COLON))
    return int(np.count_nonzero((signs[1:-2] == QUOTE) & (signs[:-3] != BACKSLASH) & colon))
