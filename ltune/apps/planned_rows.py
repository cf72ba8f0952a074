"""The rows that a plan reckons with: the heaviest step of those that were tokenised, or as long as they may be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ltune.data.collate import Step
from ltune.data.rows import IGNORE, Sequence
from ltune.data.sampler import WindowSampler
from ltune.data.split import Batches

if TYPE_CHECKING:
    from ltune.data.datamodule import ChatData
    from ltune.objectives import Objective


@dataclass(frozen=True)
class Load:
    """The largest micro-batch of a step."""

    tokens: int  # padding included
    trained: int  # of these
    longest: int  # tokens of its longest row
    micro_batches: int  # of the step


@dataclass(frozen=True)
class PlannedRows:
    """What one device computes."""

    step: Step  # the heaviest
    longest: int  # tokens of the longest row of all
    epoch_tokens: int | None  # on all devices; None: not known
    epoch_steps: int | None
    assumed: bool  # every row is as long as data.max_length lets it be
    totals: np.ndarray | None = None  # (steps,): tokens of each step of an epoch, on a device

    @property
    def window(self) -> int:
        """Tokens of the step."""
        return self.step.tokens

    @property
    def longest_of_step(self) -> int:
        """Tokens of its longest row."""
        return max(len(sequence) for sequences in self.step.sequences.values() for sequence in sequences)

    def load(self, most: int | None) -> Load:
        """Under a setting of at most so many tokens; None: micro-batches as configured."""
        batches = self.step.batches(most)
        largest = max(batches, key=lambda batch: batch.input_ids.size)
        return Load(largest.input_ids.size, len(largest.targets), largest.longest, len(batches))

    def sizes(self, most: int, bucket: int, epochs: int) -> int:
        """About how many sizes of micro-batches come at least twice, in buckets of so many tokens.

        Args:
            most: Tokens of a micro-batch.
            bucket: Sizes are rounded up to a multiple of it.
            epochs: How often the rows are seen, in another order each time.
        """
        if self.totals is None:
            return 1
        if most >= self.window:
            _, times = np.unique(-(-self.totals // bucket), return_counts=True)
            return max(1, int((times * epochs >= 2).sum()))
        parts = int(-(-self.totals // most).sum()) * epochs
        return max(1, min(most // 2 // bucket, parts // 2))  # between half full and full

    def cut(self, length: int) -> PlannedRows:
        """With rows of at most so many tokens."""
        short = {row: tuple(_cut(one, length) for one in sequences) for row, sequences in self.step.sequences.items()}
        return replace(self, step=replace(self.step, sequences=short), longest=min(self.longest, length), epoch_tokens=None, totals=None)


def trained(rows: PlannedRows, objective: Objective) -> PlannedRows:
    """What the objective makes of them, where that is more: answers to prompts, each as long as it may be."""
    step = objective.longest(rows.step)
    if step is rows.step:
        return rows
    longest = max(len(sequence) for sequences in step.sequences.values() for sequence in sequences)
    return replace(rows, step=step, longest=longest, epoch_tokens=None, totals=None)


def tokenised(data: ChatData, world_size: int) -> PlannedRows:
    """Of prepared rows: the step of the first epoch that has the most tokens."""
    rows = data.train_rows
    lengths = np.asarray(rows.prepared.lengths)[rows.indices]
    sampler = WindowSampler(
        rows.trained,
        seed=data.seed,
        batch_size=data.batch_size,
        accumulate=data.accumulate,
        rank=0,
        world_size=world_size,
        micro_batches=data.packed_micro_batches(),
    )
    heaviest, shares = sampler.heaviest(lengths)
    batches: Any = Batches(rows, flat=data.layout == "flat", pad_id=data.tokenizer.pad_token_id)
    return PlannedRows(batches[heaviest], int(lengths.max()), int(lengths.sum()), len(sampler), assumed=False, totals=shares[:, 0])


def assumed(data: dict[str, Any]) -> PlannedRows:
    """Of the configuration's ``data``: each row has max_length tokens, and all of them are trained."""
    length = data["max_length"]
    packed = data["tokens_per_batch"]
    rows = -(-packed // length) if packed else data["batch_size"]
    lengths = [min(length, packed - begin * length) if packed else length for begin in range(rows)]
    sequences: dict[int, tuple[Sequence, ...]] = {}
    micro_batches: list[tuple[int, ...]] = []
    for _ in range(data["accumulate"]):
        micro_batches.append(tuple(range(len(sequences), len(sequences) + rows)))
        sequences |= {len(sequences) + number: (_row(tokens),) for number, tokens in enumerate(lengths)}
    tokens = sum(lengths) * data["accumulate"]
    step = Step(tuple(micro_batches), sequences, tokens, len(sequences), (0, 0), data["layout"] == "flat", 0)
    return PlannedRows(step, length, None, None, assumed=True)


def _cut(sequence: Sequence, length: int) -> Sequence:
    return Sequence(sequence.input_ids[-length:], sequence.labels[-length:])  # nothing here asks for extras


def _row(tokens: int) -> Sequence:
    labels = np.zeros(tokens, np.int32)
    labels[:1] = IGNORE
    return Sequence(np.zeros(tokens, np.int32), labels)  # type: ignore[arg-type]  # prepared rows are arrays too
