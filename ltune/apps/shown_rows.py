"""Which training rows `ltune preview` shows, and what they look like in tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from ltune.data.segments import Token, stretches_of, tokens_of
from ltune.errors import UsageError

if TYPE_CHECKING:
    from ltune.data.datamodule import ChatData


@dataclass(frozen=True)
class ShownRow:
    """A training row, or one of the sequences that it becomes, which ``part`` counts from 1 to ``parts``. ``number`` counts from 1, in
    file order or the mix's; ``padding`` is what its micro-batch of the first epoch adds."""

    number: int
    place: str
    tokens: list[Token]
    padding: int
    part: int = 1
    parts: int = 1

    @property
    def name(self) -> str:
        """Its number, and which of the row's sequences it is."""
        return f"{self.number:,}" + (f" ({self.part} of its {self.parts} sequences)" if self.parts > 1 else "")

    @property
    def trained(self) -> int:
        """Tokens that count in the loss."""
        return sum(token.trained for token in self.tokens)

    def as_dict(self) -> dict[str, Any]:
        """For machines. The segments' texts joined are the whole row; padding is no part of it."""
        return {
            "input_ids": [token.id for token in self.tokens],
            "labels": [token.label for token in self.tokens],
            "segments": [{"text": stretch.text, "trained": stretch.trained} for stretch in stretches_of(self.tokens)],
        }


def shown_rows(data: ChatData, count: int, begin: str | None) -> Iterator[ShownRow]:
    """Yields ``count`` training rows in file order (or the mix's), from the one that ``begin`` names (None: the first).

    Args:
        data: With its rows prepared.
        count: How many; fewer where the rows end.
        begin: A row's number, from 1, or its place ("rows.jsonl:13").
    """
    first = 0 if begin is None else _find(data, begin)
    numbers = range(first, min(first + count, len(data.train_rows)))
    padding = _padding(data, set(numbers)) if data.layout == "padded" else {}
    rows = data.train_rows
    return (
        ShownRow(
            number + 1, rows.place(number), tokens_of(sequence, data.tokenizer), padding.get((number, part), 0), part, len(rows[number])
        )
        for number in numbers
        for part, sequence in enumerate(rows[number], 1)
    )


def _find(data: ChatData, begin: str) -> int:
    rows = len(data.train_rows)
    if begin.isdecimal():
        if not 1 <= int(begin) <= rows:
            raise UsageError(f"--row {begin}: there are training rows 1 to {rows:,}; those dropped or held out have no number.")
        return int(begin) - 1
    found = next((number for number in range(rows) if data.train_rows.place(number) == begin), None)
    if found is None:
        places = ", ".join(data.train_rows.place(number) for number in islice(range(rows), 2))
        raise UsageError(f"--row {begin}: no training row comes from there; it may be dropped or held out.\nThere are {places} ...")
    return found


def _padding(data: ChatData, numbers: set[int]) -> dict[tuple[int, int], int]:
    """By the row's number and its sequence's, from 1."""
    from ltune.data.sampler import WindowSampler

    rows = data.train_rows
    # Micro-batches are the same over all ranks and steps, so how many of these there are does not matter
    sampler = WindowSampler(
        rows.trained,
        seed=data.seed,
        batch_size=data.batch_size,
        accumulate=1,
        rank=0,
        world_size=1,
        micro_batches=data.packed_micro_batches(),
    )
    found: dict[tuple[int, int], int] = {}
    for together in sampler.micro_batches(epoch=0):
        if here := numbers & set(together):
            longest = max(len(sequence) for row in together for sequence in rows[row])
            found |= {(row, part): longest - len(sequence) for row in here for part, sequence in enumerate(rows[row], 1)}
    return found
