"""From the YAML's ``data:`` to batches: sources, rows, tokens, windows. It refuses to know the model; it is given a tokenizer."""

import logging
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from ltune.data.encode import Encoder
from ltune.data.prepared import Prepared, prepare
from ltune.data.prompts import Prompts
from ltune.data.report import show_row, write_report
from ltune.data.rows import Chat, Row
from ltune.data.sampler import InOrder, WindowSampler
from ltune.data.sources import Dataset
from ltune.data.split import MicroBatches, Split, split
from ltune.data.templates import load_template
from ltune.errors import UsageError

log = logging.getLogger(__name__)


class ChatData(LightningDataModule):
    """Rows for training, validation, test and prediction.

    Args:
        datasets: What to train on, in this order: names in dataset_info.json, files, folders, "quickstart" or hub ids.
        folder: Folder that holds dataset_info.json and the files it names.
        template: Named chat template or a .jinja file; null: the tokenizer's own.
        system: System text for conversations that have none; null: the template's default.
        max_length: Longest row in tokens.
        truncation: For longer rows. left: oldest turns go first, then the prompt's beginning, never the answer; drop: the row goes;
            llamafactory: both sides share the budget, cut at the right.
        train_on: assistant: every answer; last: the last answer; all: prompts too.
        max_rows: First rows taken of each data set; null: all.
        val_size: Rows (1 or more) or share (below 1) of ``datasets`` held out for validation.
        val_datasets: Data sets for validation, instead of val_size.
        test_datasets: Data sets for ``ltune test`` and ``ltune predict``; empty: predict takes ``datasets``.
        batch_size: Rows in a micro-batch on one device.
        layout: flat: rows laid end to end without padding; padded: one row a line.
        processes: For tokenising; null: by the number of rows.
        workers: For loading batches; 0: in the training process.
        cache: Folder for tokenised rows; null: $XDG_CACHE_HOME/ltune/data.
        seed: Linked to seed_everything.
        tokenizer: Linked to the model's.
        rows: Linked to the objective's kind of rows.
    """

    def __init__(
        self,
        datasets: list[str | Dataset] = [],  # noqa: B006 (never written to; jsonargparse shows it)
        folder: str = "data",
        template: str | None = None,
        system: str | None = None,
        max_length: int = 2048,
        truncation: Literal["left", "drop", "llamafactory"] = "left",
        train_on: Literal["assistant", "last", "all"] = "assistant",
        max_rows: int | None = None,
        val_size: int | float = 0,
        val_datasets: list[str | Dataset] = [],  # noqa: B006
        test_datasets: list[str | Dataset] = [],  # noqa: B006
        batch_size: int = 2,
        layout: Literal["flat", "padded"] = "flat",
        processes: int | None = None,
        workers: int = 0,
        cache: str | None = None,
        seed: int = 42,
        tokenizer: Any = None,
        rows: type[Row] = Chat,
    ) -> None:
        super().__init__()
        self.datasets, self.val_datasets, self.test_datasets = datasets, val_datasets, test_datasets
        self.folder, self.cache, self.processes = folder, cache, processes
        self.max_rows, self.val_size = max_rows, val_size
        self.batch_size, self.layout, self.workers = batch_size, layout, workers
        self.seed, self.tokenizer, self.rows = seed, tokenizer, rows
        self.template = load_template(template, tokenizer) if issubclass(rows, Chat) else None
        self.encoder = Encoder(self.template, tokenizer, max_length=max_length, truncation=truncation, train_on=train_on, system=system)
        self.prepared: dict[str, Prepared] = {}  # of train, val, test, as far as asked for
        self.resumed_at = (0, 0)  # (epoch, window) that training goes on with
        self._trained_up_to: tuple[int, int] | None = None

    @property
    def _trainer(self) -> Trainer:
        assert self.trainer is not None, "Lightning attaches the trainer before it asks for data"
        return self.trainer

    # -- rows ---------------------------------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Tokenise what this command needs, or find it tokenised. Before any model loads, so bad data is refused in seconds."""
        self.prepare(str(self._trainer.state.fn))

    def setup(self, stage: str) -> None:
        """On every rank: open what rank 0 tokenised."""
        self.prepare(stage)

    def prepare(self, stage: str) -> None:
        """Tokenise or find the rows of ``stage``: fit, validate, test; predict needs none."""
        if stage == "fit" and not self.prepared:
            everything = self._prepare(self.datasets, "datasets")
            self.prepared["all"] = everything
            self.train_rows, self.val_rows = self._split(everything)
        elif stage == "validate" and "val" not in self.prepared:
            self.val_rows = self._validation_rows()
        elif stage == "test" and "test" not in self.prepared:
            self.prepared["test"] = self._prepare(self.test_datasets, "test_datasets")
            self.test_rows = Split.whole(self.prepared["test"])

    def _validation_rows(self) -> Split:
        if self.val_datasets:
            self.prepared["val"] = self._prepare(self.val_datasets, "val_datasets")
            return Split.whole(self.prepared["val"])
        held_out = split(self._prepare(self.datasets, "datasets"), self.val_size, self.seed)[1]
        if held_out is None:
            raise UsageError("there are no validation rows.\nSet  data.val_size  or  data.val_datasets")
        return held_out

    def _prepare(self, datasets: list[str | Dataset], key: str) -> Prepared:
        if not datasets:
            raise UsageError(f"data.{key} is empty: nothing to work on.\nName data sets, for example  --data.{key}+=path/to/rows.jsonl")
        return prepare(
            datasets, self.folder, rows=self.rows, encoder=self.encoder, max_rows=self.max_rows, processes=self.processes, cache=self.cache
        )

    def _split(self, everything: Prepared) -> tuple[Split, Split | None]:
        if self.val_datasets:
            return Split.whole(everything), self._validation_rows()
        return split(everything, self.val_size, self.seed)

    @property
    def sources(self) -> list[dict]:
        """What was read: name, path, sha256 and rows of each file."""
        return [source for prepared in self.prepared.values() for source in prepared.report["sources"]]

    def report(self, folder: Path) -> None:
        """Write data_report.json and show the first row as it is trained."""
        write_report(self.prepared["all"].report, folder / "data_report.json")
        log.info("first row, trained part marked:\n%s", show_row(self.train_rows[0], self.tokenizer))

    # -- batches ------------------------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader:
        """Micro-batches in the order that is a function of seed and epoch, from where a resumed run goes on."""
        return self._loader(self.train_rows, self._window_sampler())

    def _window_sampler(self) -> WindowSampler:
        return WindowSampler(
            self.train_rows.trained,
            seed=self.seed,
            batch_size=self.batch_size,
            accumulate=self._trainer.accumulate_grad_batches,
            rank=self._trainer.global_rank,
            world_size=self._trainer.world_size,
            start=self.resumed_at,
        )

    def val_dataloader(self) -> DataLoader | list:
        """The held-out rows in file order."""
        return self._in_order(self.val_rows) if self.val_rows is not None else []

    def test_dataloader(self) -> DataLoader:
        """The test rows in file order."""
        return self._in_order(self.test_rows)

    def predict_dataloader(self) -> DataLoader:
        """Prompts of the test data sets (or of ``datasets``), each up to its last answer."""
        prompts = Prompts.read(self.test_datasets or self.datasets, self.folder, self.rows, self.encoder, self.max_rows)
        mine = prompts.of_rank(self._trainer.global_rank, self._trainer.world_size)
        return DataLoader(mine, batch_size=self.batch_size, collate_fn=list)

    def _in_order(self, rows: Split) -> DataLoader:
        rank, world_size = self._trainer.global_rank, self._trainer.world_size
        return self._loader(rows, InOrder(rows.trained, batch_size=self.batch_size, rank=rank, world_size=world_size))

    def _loader(self, rows: Split, sampler) -> DataLoader:
        batches = MicroBatches(rows, flat=self.layout == "flat", pad_id=self.tokenizer.pad_token_id)
        # A generator of its own: without one, each new iteration draws from the global random numbers.
        generator = torch.Generator().manual_seed(self.seed)
        return DataLoader(batches, sampler=sampler, batch_size=None, collate_fn=_unchanged, num_workers=self.workers, generator=generator)

    def on_before_batch_transfer(self, batch, dataloader_idx: int):
        """Arrays become tensors here, in the training process; and this is the batch that is trained on next."""
        if isinstance(batch, list):
            return batch
        if batch.position is not None:
            self._trained_up_to = batch.position[:2]
        return batch.tensors()

    # -- resume -------------------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict:
        """Where training stands: the epoch and the window trained last. Taken from the batches, as the loader may have read ahead."""
        return {"trained_up_to": list(self._trained_up_to) if self._trained_up_to else None}

    def load_state_dict(self, state_dict: dict) -> None:
        """Go on with the window after the one trained last."""
        if state_dict["trained_up_to"] is None or self._trainer.state.fn != "fit":
            return
        epoch, window = state_dict["trained_up_to"]
        self._trained_up_to = (epoch, window)
        self.resumed_at = (epoch, window + 1) if window + 1 < self._windows() else (epoch + 1, 0)

    def _windows(self) -> int:
        """Optimizer steps in an epoch, with trainer.limit_train_batches counted in."""
        limit = self._trainer.limit_train_batches
        whole = len(self._window_sampler())
        taken = min(whole, limit) if isinstance(limit, int) else int(whole * limit)
        return -(-taken // self._trainer.accumulate_grad_batches)


def _unchanged(batch):
    return batch
