"""A row in tokens, back to text: what each token adds, what is trained, what is a control token. It refuses to know how it is shown."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from ltune.data.rows import IGNORE, Sequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WINDOW = 32  # tokens decoded together: what stands far before changes no text
CONTEXT = 8  # of them, before the one that is asked about: decoders treat the first one in a special way
PATIENCE = 8  # a character has at most 4 bytes, so 4 tokens


@dataclass(frozen=True)
class Token:
    """A token in its row. ``text`` is what it adds to the text: nothing where its character is completed by a later token."""

    id: int
    label: int
    text: str
    control: bool

    @property
    def trained(self) -> bool:
        """Whether it counts in the loss."""
        return self.label != IGNORE


@dataclass(frozen=True)
class Stretch:
    """Text that is trained as a whole, or not at all. Those of a row, joined, are the whole row with control tokens written out."""

    text: str
    trained: bool


def tokens_of(sequence: Sequence, tokenizer: "PreTrainedTokenizerBase") -> list[Token]:
    """The row token by token; their texts joined are what the tokenizer makes of all ids at once."""
    ids = [int(id) for id in sequence.input_ids]
    control = control_ids(tokenizer)
    made = zip(ids, map(int, sequence.labels), texts_of(ids, tokenizer), strict=True)
    return [Token(id, label, text, id in control) for id, label, text in made]


def stretches_of(tokens: list[Token]) -> list[Stretch]:
    """Neighbours that are trained alike, together."""
    grouped = groupby(tokens, key=lambda token: token.trained)
    return [Stretch("".join(token.text for token in together), trained) for trained, together in grouped]


def control_ids(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Added tokens; runs of white space are added ones too in some tokenizers, and control nothing."""
    return {id for id, token in tokenizer.added_tokens_decoder.items() if token.content and not token.content.isspace()}


def texts_of(ids: list[int], tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """What each token adds to the text of all. Where a character is divided between tokens, it is the last one's.

    A token decoded alone may lose its leading space, or be a part of a character; so it is what the text grows by, and each growth is
    compared with the text of the whole.
    """
    whole = _decode(ids, tokenizer)
    texts = [whole[begin:end] for begin, end in _spans(ids, whole, tokenizer)]
    assert "".join(texts) == whole, "spans follow each other and cover the whole"
    return texts


def _spans(ids: list[int], whole: str, tokenizer: "PreTrainedTokenizerBase") -> Iterator[tuple[int, int]]:
    position = 0  # in ``whole``: all before it has been given to a token
    start, known = 0, ""  # the window's first token, and the window's text as far as it has been given away
    clean = [0]  # how many tokens had been read wherever the text fitted
    for count in range(1, len(ids) + 1):
        before = position
        grown = _decode(ids[start:count], tokenizer)
        if grown.startswith(known) and whole.startswith(grown[len(known) :], position):
            position += len(grown) - len(known)
            known = grown
            clean.append(count)
        elif count - clean[-1] > PATIENCE:  # this decoder looks further back
            position = max(position, _common(_decode(ids[:count], tokenizer), whole))
        if count == len(ids):
            position = len(whole)
        yield before, position
        if count - start >= WINDOW and clean[-1] == count:
            start = max(place for place in clean if place <= count - CONTEXT)
            known = _decode(ids[start:count], tokenizer)
            clean = [place for place in clean if place >= start]


def _common(text: str, other: str) -> int:
    """Characters at the beginning that are the same."""
    pairs = zip(text, other, strict=False)
    return next((place for place, (one, two) in enumerate(pairs) if one != two), min(len(text), len(other)))


def _decode(ids: list[int], tokenizer: "PreTrainedTokenizerBase") -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
