"""Rows as questions: for ``ltune predict``."""

from dataclasses import dataclass

import torch

from ltune.data.encode import Encoder
from ltune.data.formats import to_row
from ltune.data.rows import Chat, Row
from ltune.data.sources import Dataset, read, resolve
from ltune.errors import UsageError


@dataclass  # not frozen: Lightning looks for tensors in it and refuses frozen ones
class Prompt:
    """A conversation up to where the model speaks, and what the row has there."""

    row: int
    ids: list[int]
    label: str | None


class Prompts(torch.utils.data.Dataset):
    """Prompts in file order.

    Args:
        prompts: The prompts.
    """

    def __init__(self, prompts: list[Prompt]) -> None:
        self.prompts = prompts

    @classmethod
    def read(cls, datasets: list[str | Dataset], folder: str, rows: type[Row], encoder: Encoder, max_rows: int | None) -> "Prompts":
        """Read and encode the data sets' rows, each set cut to its first ``max_rows``."""
        if not issubclass(rows, Chat):
            raise UsageError("predict answers conversations; the objective's rows are plain text.\nSet  --model.objective SFT")
        prompts: list[Prompt] = []
        for dataset in datasets:
            source = resolve(dataset, folder)
            limit = source.max_rows if source.max_rows is not None else max_rows
            for number, (place, record) in enumerate(read(source)):
                if limit is not None and number >= limit:
                    break
                row = to_row(place, record, source.format, source.columns, source.tags, rows, answered=False)
                assert isinstance(row, Chat), row
                ids, label = encoder.prompt(row)
                prompts.append(Prompt(len(prompts), ids, label))
        if not prompts:
            raise UsageError("no rows to predict for.\nName data sets, for example  --data.test_datasets+=path/to/rows.jsonl")
        return cls(prompts)

    def of_rank(self, rank: int, world_size: int) -> "Prompts":
        """Every ``world_size``-th prompt, from ``rank`` on."""
        return Prompts(self.prompts[rank::world_size])

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, number: int) -> Prompt:
        return self.prompts[number]
