"""Rows as questions: for ``ltune predict``."""

import logging
from dataclasses import dataclass

import torch

from ltune.data.encode import Encoder
from ltune.data.formats import rows_of
from ltune.data.read import BadRows
from ltune.data.rows import Chat, Row
from ltune.data.sources import Dataset, resolve
from ltune.errors import UsageError

log = logging.getLogger(__name__)


@dataclass  # not frozen: Lightning looks for tensors in it and refuses frozen ones
class Question:
    """A conversation up to where the model speaks, and what the row has there."""

    row: int
    ids: list[int]
    label: str | None


class Prompts(torch.utils.data.Dataset):
    """Prompts in file order.

    Args:
        prompts: The prompts.
    """

    def __init__(self, prompts: list[Question]) -> None:
        self.prompts = prompts

    @classmethod
    def read(
        cls,
        datasets: list[str | Dataset],
        folder: str,
        rows: type[Row],
        encoder: Encoder,
        max_rows: int | None,
        bad_rows: BadRows = "error",
    ) -> "Prompts":
        """Read and encode the data sets' rows, each set cut to its first ``max_rows``."""
        if not issubclass(rows, Chat):
            raise UsageError("predict answers conversations; the objective's rows are others.\nSet  --model.objective SFT")
        prompts: list[Question] = []
        for dataset in datasets:
            source = resolve(dataset, folder)
            limit = source.max_rows if source.max_rows is not None else max_rows
            for row in rows_of(source, rows, bad_rows=bad_rows, on_bad=_skipped, answered=False, limit=limit):
                assert isinstance(row, Chat), row
                ids, label = encoder.prompt(row)
                prompts.append(Question(len(prompts), ids, label))
        if not prompts:
            raise UsageError("no rows to predict for.\nName data sets, for example  --data.test_datasets+=path/to/rows.jsonl")
        return cls(prompts)

    def of_rank(self, rank: int, world_size: int) -> "Prompts":
        """Every ``world_size``-th prompt, from ``rank`` on."""
        return Prompts(self.prompts[rank::world_size])

    def first(self, count: int) -> "Prompts":
        """So many, from the first on."""
        return Prompts(self.prompts[:count])

    def longest_first(self) -> "Prompts":
        """By length, so that what lies in a batch needs little padding, and too little memory shows at once."""
        return Prompts(sorted(self.prompts, key=lambda prompt: -len(prompt.ids)))

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, number: int) -> Question:
        return self.prompts[number]


def _skipped(place: str, reason: str) -> None:
    log.warning("skipped: %s: %s", place, reason.splitlines()[0])
