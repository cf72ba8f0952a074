"""From the YAML's ``data:`` to batches: sources, rows, tokens, windows. It refuses to know the model; it is given a tokenizer."""

import logging
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader, Sampler

from ltune.data.collate import Step
from ltune.data.encode import Encoder
from ltune.data.mixing import Concatenate, Mix
from ltune.data.packing import pack
from ltune.data.prepared import Prepared, prepare
from ltune.data.prompts import Prompts
from ltune.data.read import BadRows
from ltune.data.remarks import remarks
from ltune.data.report import show_row, write_report
from ltune.data.rows import BadRow, Chat, Row, Text, WrongColumns
from ltune.data.sampler import InOrder, WindowSampler, epoch_order
from ltune.data.sources import Dataset
from ltune.data.split import Batches, Split, by_dataset, mixed, short_names, split
from ltune.data.templates import load_template
from ltune.errors import UsageError

log = logging.getLogger(__name__)


class ChatData(LightningDataModule):
    """Rows for training, validation, test and prediction.

    Args:
        datasets: What to train on, in this order: names in dataset_info.json, files, globs, folders, "quickstart" or hub ids; or with
            options of their own, as {name: ..., max_rows: ..., weight: ..., format: ..., columns: ...}.
        folder: Folder that holds dataset_info.json and the files it names.
        template: Named chat template (``ltune templates`` lists them) or a .jinja file; null: the tokenizer's own.
        system: System text for conversations that have none; null: the template's default.
        date: That a template writes which writes today's, as "2026-11-26"; null: always 26 Jul 2024, so that a row is the same tomorrow.
        reasoning: What becomes of an answer's reasoning. keep: it is trained; drop_history: left out before the last question, and answers
            that had some there are not trained; mask: written but not trained; drop: left out everywhere.
        max_length: Longest row in tokens.
        control_tokens: What becomes of control tokens that a row's text spells. encode: plain text; error: the row is refused; allow:
            control tokens. The report counts them.
        truncation: For longer rows. left: oldest turns go first, then the prompt's beginning, never the system text or the answer; drop:
            the row goes; error: it is refused; split: it becomes several, of whole turns, each with the system text; llamafactory: both
            sides share the budget, cut at the right.
        train_on: assistant: every answer; last: the last answer; all: prompts too.
        weights: What a trained token of a conversation counts in the loss, by whose it is: system, user, tool, assistant, template (all
            that is no message's text); 1 where nothing is said, and 0 is not trained. null: all count the same.
        max_rows: First rows taken of each data set; null: all.
        mix: How the data sets are put together: Concatenate; Interleave (stop: under, over or once; probabilities).
        bad_rows: error: a row that is malformed or fits no format ends the command; skip: it is counted, listed and left out.
        val_size: Rows (1 or more) or share (below 1) of ``datasets`` held out for validation.
        val_datasets: Data sets for validation, instead of val_size; of several, each has metrics of its own too.
        test_datasets: Data sets for ``ltune test`` and ``ltune predict``; empty: predict takes ``datasets``.
        batch_size: Rows in a micro-batch on one device; trainer.accumulate_grad_batches of them make a step, however memory divides it.
        tokens_per_batch: Instead of so many rows, as many as fit into this many tokens; null: batch_size rows.
        layout: flat: rows laid end to end without padding; padded: one row a line.
        processes: For tokenising; null: by the number of rows.
        workers: For loading batches; 0: in the training process.
        cache: Folder for tokenised rows; null: $XDG_CACHE_HOME/ltune/data.
        accumulate: Linked to trainer.accumulate_grad_batches.
        seed: Linked to seed_everything.
        tokenizer: Linked to the model's.
        rows: Linked to the objective's kind of rows.
        repeats: Linked to the objective's optimizer steps for each window.
        objective: Linked to the objective's name, for messages.
    """

    def __init__(
        self,
        datasets: list[str | Dataset] = [],  # noqa: B006 (never written to; jsonargparse shows it)
        folder: str = "data",
        template: str | None = None,
        system: str | None = None,
        date: str | None = None,
        reasoning: Literal["keep", "drop_history", "mask", "drop"] = "keep",
        max_length: int = 2048,
        control_tokens: Literal["encode", "error", "allow"] = "encode",
        truncation: Literal["left", "drop", "error", "split", "llamafactory"] = "left",
        train_on: Literal["assistant", "last", "all"] = "assistant",
        weights: dict[str, float] | None = None,
        max_rows: int | None = None,
        mix: Mix = Concatenate(),  # noqa: B008 (stateless; jsonargparse shows it)
        bad_rows: BadRows = "error",
        val_size: int | float = 0,
        val_datasets: list[str | Dataset] = [],  # noqa: B006
        test_datasets: list[str | Dataset] = [],  # noqa: B006
        batch_size: int = 2,
        tokens_per_batch: int | None = None,
        layout: Literal["flat", "padded"] = "flat",
        processes: int | None = None,
        workers: int = 0,
        cache: str | None = None,
        accumulate: int = 1,
        seed: int = 42,
        tokenizer: Any = None,
        rows: type[Row] = Chat,
        repeats: int = 1,
        objective: str = "the objective",
    ) -> None:
        super().__init__()
        self.datasets, self.val_datasets, self.test_datasets = datasets, val_datasets, test_datasets
        self.folder, self.cache, self.processes = folder, cache, processes
        self.max_rows, self.val_size = max_rows, val_size
        self.mix, self.bad_rows = mix, bad_rows
        self.batch_size, self.tokens_per_batch, self.accumulate = batch_size, tokens_per_batch, accumulate
        self.layout, self.workers = layout, workers
        self.seed, self.tokenizer = seed, tokenizer
        self.rows, self.repeats, self.objective = rows, repeats, objective
        self.template = None if issubclass(rows, Text) else load_template(template, tokenizer, reasoning, date)
        if weights is not None and rows is not Chat:
            raise UsageError(f"data.weights: rows of the kind {rows.__name__} have no roles to weigh.\nSet  data.weights: null")
        self.encoder = Encoder(self.template, tokenizer, max_length, truncation, train_on, system, control_tokens, weights)
        self.prepared: dict[str, Prepared] = {}  # of train, val, test, as far as asked for
        self.resumed_at = (0, 0)  # (epoch, window) that training goes on with
        self._trained_up_to: tuple[int, int] | None = None
        self.prompts_at_once: int | None = None  # set by who answers them; None: batch_size

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
        if key != "datasets" and any(isinstance(dataset, Dataset) and dataset.weight != 1 for dataset in datasets):
            raise UsageError(f"data.{key}: weights are for training; here each row counts once.\nRemove them.")
        try:
            return prepare(
                datasets,
                self.folder,
                rows=self.rows,
                encoder=self.encoder,
                max_rows=self.max_rows,
                processes=self.processes,
                cache=self.cache,
                bad_rows=self.bad_rows,
            )
        except WrongColumns as error:
            raise BadRow(error.place, f"{error.reason}\n{self.objective} trains on {self.rows.described}.") from None

    def _split(self, everything: Prepared) -> tuple[Split, Split | None]:
        train, val = split(everything, 0 if self.val_datasets else self.val_size, self.seed)
        weights = [dataset.weight if isinstance(dataset, Dataset) else 1.0 for dataset in self.datasets]
        return mixed(train, self.mix, weights, self.seed), self._validation_rows() if self.val_datasets else val

    @property
    def val_names(self) -> list[str]:
        """The names of ``val_datasets``, in the order of their loaders."""
        return short_names(list(by_dataset(self.val_rows))) if self.val_datasets and self.val_rows is not None else []

    @property
    def test_names(self) -> list[str]:
        """The names of ``test_datasets``, in the order of their loaders."""
        return short_names(list(by_dataset(self.test_rows)))

    @property
    def sources(self) -> list[dict]:
        """What was read: name, path, sha256 and rows of each file."""
        return [source for prepared in self.prepared.values() for source in prepared.report["sources"]]

    def report(self, folder: Path) -> None:
        """Write data_report.json, say what is worth a second look in it, and show the first row as it is trained."""
        report = self.prepared["all"].report
        write_report(report, folder / "data_report.json")
        for remark in remarks(report):
            log.warning("data: %s", remark)
        shown = "\n".join(show_row(sequence, self.tokenizer) for sequence in self.train_rows[0])
        log.info("first row, ⟦trained⟧ or green, ‹control› or cyan:\n%s", shown)

    # -- batches ------------------------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader:
        """Steps in the order that is a function of seed and epoch, from where a resumed run goes on."""
        return self._loader(self.train_rows, self.window_sampler())

    def window_sampler(self) -> WindowSampler:
        """Which rows this rank trains on in which step."""
        return WindowSampler(
            self.train_rows.trained,
            seed=self.seed,
            batch_size=self.batch_size,
            accumulate=self.accumulate,
            rank=self._trainer.global_rank,
            world_size=self._trainer.world_size,
            start=self.resumed_at,
            micro_batches=self.packed_micro_batches(),
            repeats=self.repeats,
        )

    def packed_micro_batches(self) -> list[tuple[int, ...]] | None:
        """The micro-batches of ``tokens_per_batch``; packed once, so that every epoch has as many steps."""
        if self.tokens_per_batch is None:
            return None
        lengths = self.train_rows.lengths
        return pack(lengths, epoch_order(len(lengths), self.seed, 0), self.tokens_per_batch)

    @cached_property
    def heaviest_step(self) -> Step:
        """What a rank has in a step of the first epoch that has the most tokens: where it fits, all others do."""
        window, _ = self.window_sampler().heaviest(self.train_rows.lengths)
        return self._batches(self.train_rows)[window]

    def val_dataloader(self) -> DataLoader | list:
        """The held-out rows, or those of each of ``val_datasets`` in a loader of its own; in file order."""
        if self.val_rows is None:
            return []
        return self._loaders(self.val_rows) if self.val_datasets else self._in_order(self.val_rows)

    def test_dataloader(self) -> DataLoader | list:
        """The test rows, those of each data set in a loader of its own; in file order."""
        return self._loaders(self.test_rows)

    def _loaders(self, rows: Split) -> DataLoader | list:
        loaders = [self._in_order(part) for part in by_dataset(rows).values()]
        return loaders[0] if len(loaders) == 1 else loaders

    def predict_dataloader(self) -> DataLoader:
        """Prompts of the test data sets (or of ``datasets``), each up to its last answer; those of about the same length side by side."""
        prompts = Prompts.read(self.test_datasets or self.datasets, self.folder, self.rows, self.encoder, self.max_rows, self.bad_rows)
        mine = prompts.of_rank(self._trainer.global_rank, self._trainer.world_size)
        limit = self._trainer.limit_predict_batches
        if isinstance(limit, float) and limit < 1:  # of the batches in file order, which Lightning counts
            return DataLoader(mine, batch_size=self.batch_size, collate_fn=list)
        if isinstance(limit, int):
            mine = mine.first(limit * self.batch_size)
        return DataLoader(mine.longest_first(), batch_size=self.prompts_at_once or self.batch_size, collate_fn=list)

    def _in_order(self, rows: Split) -> DataLoader:
        rank, world_size = self._trainer.global_rank, self._trainer.world_size
        return self._loader(rows, InOrder(rows.trained, batch_size=self.batch_size, rank=rank, world_size=world_size))

    def _loader(self, rows: Split, sampler: Sampler) -> DataLoader:
        return self._batches(rows).loader(sampler, workers=self.workers, seed=self.seed)

    def _batches(self, rows: Split) -> Batches:
        return Batches(rows, flat=self.layout == "flat", pad_id=self.tokenizer.pad_token_id)

    def on_before_batch_transfer(self, batch, dataloader_idx: int):
        """This is the step that is trained next."""
        if isinstance(batch, Step) and batch.position is not None:
            self._trained_up_to = batch.position
        return batch

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
        whole = len(self.window_sampler())
        return min(whole, limit) if isinstance(limit, int) else int(whole * limit)
