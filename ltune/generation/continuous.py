"""Answers to many prompts through a decoder with a cache: as many rows at once as it holds, the next one in where one has ended.

Longest prompts go first. Each of the first rows gets a part of the cache as long as its prompt and the longest answer; every later
prompt fits into any part that becomes free, because it is no longer than those before it. What cannot fit shows at the start.
"""

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ltune.generation.choose import Repeated, chosen, uniforms
from ltune.generation.sampling import Sampling

ROWS = 1024  # at once; more of them do not make the products quicker
READ = 8192  # prompt tokens at once
SHARE = 8  # prompts are read when an eighth of the rows can take one: reading costs about a step, however short the prompt
SAY = 10.0  # seconds between lines in the log

log = logging.getLogger(__name__)


class Decoder(Protocol):
    """A model with a cache of keys and values."""

    def open(self, wanted: int, longest: int, rows: int) -> int:
        """Make a cache of ``wanted`` tokens or fewer, at least ``longest``, for steps of up to ``rows`` rows; what it came to."""

    def prefill(self, prompts: Sequence[Sequence[int]], starts: Sequence[int]) -> Tensor:
        """Read prompts into the cache from ``starts`` on; the logits (n, V) of what follows each."""

    def step(self, tokens: Sequence[int], starts: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """Read one token more of each row, of which ``lengths`` are in the cache; the logits (n, V) of what follows each."""

    def close(self) -> None:
        """Give the cache's memory back."""


@dataclass
class Row:
    """A prompt that is being answered."""

    number: int
    slot: int
    start: int  # in the cache
    length: int  # tokens in the cache
    numbers: list[float]  # random ones, one a token; none for greedy answers
    answer: list[int] = field(default_factory=list)

    @property
    def draw(self) -> float:
        """For the next token."""
        return self.numbers[len(self.answer)] if self.numbers else 0.0


def answer_all(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    stop_ids: set[int],
    seeds: Sequence[Sequence[int]] | None = None,
    keep_stop: bool = False,
) -> list[list[int]]:
    """The answers, in the order of the prompts: new ids only, each before its first stop id.

    An answer depends on its prompt and its seed, up to rounding, not on the prompts beside it.

    Args:
        decoder: The model.
        prompts: Of any lengths, none empty.
        sampling: How tokens are chosen.
        stop_ids: What ends an answer.
        seeds: Of each prompt; None: drawn from torch's generator.
        keep_stop: The stop id stays, as an answer's last.
    """
    if not prompts:
        return []
    assert all(prompts), "a prompt without tokens"
    if seeds is None:
        base = int(torch.randint(2**62, ()))
        seeds = [(base, number) for number in range(len(prompts))]
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    needs = [len(prompts[number]) + sampling.max_new_tokens for number in order[:ROWS]]
    try:
        tokens = decoder.open(sum(needs), needs[0], len(needs))
        return Answering(decoder, prompts, sampling, stop_ids, seeds, _parts(needs, tokens), keep_stop).all(order)
    finally:
        decoder.close()


def _parts(needs: list[int], tokens: int) -> list[int]:
    """Where in a cache of so many tokens the rows begin, as many as it holds."""
    starts, end = [], 0
    for need in needs:
        if end + need > tokens:
            break
        starts.append(end)
        end += need
    return starts


class Answering:
    """The loop of ``answer_all``.

    Args:
        decoder: The model, its cache open.
        prompts: As there.
        sampling: As there.
        stop_ids: As there.
        seeds: As there.
        starts: Where in the cache rows begin, one a slot.
        keep_stop: As there.
    """

    def __init__(
        self,
        decoder: Decoder,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        stop_ids: set[int],
        seeds: Sequence[Sequence[int]],
        starts: list[int],
        keep_stop: bool = False,
    ) -> None:
        self.decoder, self.prompts, self.sampling, self.stop_ids, self.seeds = decoder, prompts, sampling, stop_ids, seeds
        self.starts, self.keep_stop = starts, keep_stop
        self.free = list(range(len(starts)))[::-1]  # slots; the first prompts take them in order, as they were measured for them
        self.rows: list[Row] = []
        self.repeated = Repeated(len(starts), sampling.repetition_penalty) if sampling.repetition_penalty != 1 else None

    def all(self, order: Sequence[int]) -> list[list[int]]:
        """The answers.

        Args:
            order: Numbers of the prompts, longest first.
        """
        answers: list[list[int]] = [[] for _ in self.prompts]
        waiting, done, said = deque(order), 0, time.monotonic()
        while waiting or self.rows:
            if waiting and (not self.rows or len(self.free) >= min(len(waiting), max(1, len(self.starts) // SHARE))):
                self._admit(waiting)
            else:
                self._step()
            for row in self._ended():
                answers[row.number] = row.answer
                done += 1
            if time.monotonic() - said >= SAY:
                said = time.monotonic()
                log.info("%d of %d prompts answered, %d under way", done, len(order), len(self.rows))
        return answers

    def _admit(self, waiting: deque[int]) -> None:
        """Read prompts into the free slots, some at a time."""
        for numbers in _by_tokens([waiting.popleft() for _ in range(min(len(waiting), len(self.free)))], self.prompts):
            prompts = [self.prompts[number] for number in numbers]
            rows = [self._row(number) for number in numbers]
            logits = self.decoder.prefill(prompts, [row.start for row in rows])
            if self.repeated:
                self.repeated.begin([row.slot for row in rows], prompts, logits)
            self._choose(rows, logits)
            self.rows += rows

    def _row(self, number: int) -> Row:
        slot = self.free.pop()
        numbers = uniforms(self.seeds[number], self.sampling.max_new_tokens) if self.sampling.temperature else []
        return Row(number, slot, self.starts[slot], len(self.prompts[number]), numbers)

    def _step(self) -> None:
        """One token more for all rows."""
        rows = self.rows
        logits = self.decoder.step([row.answer[-1] for row in rows], [row.start for row in rows], [row.length for row in rows])
        for row in rows:
            row.length += 1
        self._choose(rows, logits)

    def _choose(self, rows: list[Row], logits: Tensor) -> None:
        slots = [row.slot for row in rows]
        if self.repeated:
            logits = self.repeated.penalized(slots, logits)
        tokens = chosen(logits, self.sampling, [row.draw for row in rows])
        for row, token in zip(rows, tokens, strict=True):
            row.answer.append(token)
        if self.repeated:
            self.repeated.add(slots, tokens)

    def _ended(self) -> list[Row]:
        """Rows whose answer is whole; they leave their slots."""
        ended = []
        for row in self.rows:
            if row.answer[-1] in self.stop_ids:
                if not self.keep_stop:
                    row.answer.pop()
            elif len(row.answer) < self.sampling.max_new_tokens:
                continue
            ended.append(row)
        if ended:
            gone = {row.slot for row in ended}
            self.free += gone
            self.rows = [row for row in self.rows if row.slot not in gone]
        return ended


def _by_tokens(numbers: Sequence[int], prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """As many at once as have READ tokens; one that has more goes alone."""
    part: list[int] = []
    tokens = 0
    for number in numbers:
        if part and tokens + len(prompts[number]) > READ:
            yield part
            part, tokens = [], 0
        part.append(number)
        tokens += len(prompts[number])
    if part:
        yield part
