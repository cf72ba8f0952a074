import io
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console
from torch.utils.data import DataLoader

from ltune.callbacks.metrics_file import JSONLines, read_metrics
from ltune.callbacks.progress import Progress
from ltune.callbacks.step_numbers import StepNumbers, tell
from ltune.callbacks.when import at_log_step


class Losses(Callback):
    """Tells the step's loss, and notes when it is read."""

    def __init__(self, events: list[str]):
        self.events = events

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.events.append(f"end {trainer.global_step}")
        if at_log_step(trainer):
            step, loss = trainer.global_step, float(outputs["loss"])
            tell(trainer, lambda: self.events.append(f"read {step}") or {"train/loss": loss})


class Tiny(LightningModule):
    def __init__(self, events: list[str], fails_at: int | None = None):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 2)
        self.events, self.fails_at = events, fails_at

    def training_step(self, batch, _):
        if self.trainer.global_step + 1 == self.fails_at:
            raise RuntimeError("no more")
        self.events.append(f"sent {self.trainer.global_step + 1}")
        return self.layer(batch).pow(2).mean()

    def validation_step(self, batch, _):
        self.log("val/loss", self.layer(batch).pow(2).mean(), batch_size=1)
        self.log("step", float(self.trainer.global_step), batch_size=1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, late: bool, every: int = 2, fails_at: int | None = None, more: tuple = ()) -> tuple[list[str], list[str]]:
    events: list[str] = []
    shown = io.StringIO()
    torch.manual_seed(1)
    callbacks = [Losses(events), StepNumbers(late), Progress(Console(file=shown)), *more]
    trainer = Trainer(
        default_root_dir=folder, max_epochs=2, log_every_n_steps=every, logger=JSONLines(folder), accelerator="cpu", callbacks=callbacks,
        num_sanity_val_steps=0, enable_checkpointing=bool(more), enable_model_summary=False, val_check_interval=3,
    )  # fmt: skip
    trainer.fit(Tiny(events, fails_at), DataLoader(torch.randn(5, 4)), DataLoader(torch.randn(2, 4)))
    return events, shown.getvalue().splitlines()


@pytest.mark.parametrize("every", [1, 2, 3])
def test_late_or_at_once_the_same_is_written_and_shown(tmp_path, every):
    (_, at_once), (_, late) = fit(tmp_path / "at once", late=False, every=every), fit(tmp_path / "late", late=True, every=every)
    assert read_metrics(tmp_path / "late" / "metrics.jsonl") == read_metrics(tmp_path / "at once" / "metrics.jsonl")
    losses = [[line.split("  eta")[0] for line in lines if "val/" not in line] for lines in (at_once, late)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == len(set(losses[0])) > 3


def test_they_are_read_when_the_next_step_has_been_sent_or_before_whatever_comes_instead(tmp_path):
    events, _ = fit(tmp_path, late=True, every=2)
    assert " ".join(events).startswith("sent 1 end 1 sent 2 read 1 end 2 sent 3 read 2 end 3 sent 4 end 4 sent 5 read 4 end 5 sent 6")
    at_once, _ = fit(tmp_path / "at once", late=False, every=2)
    assert " ".join(at_once).startswith("sent 1 end 1 read 1 sent 2 end 2 read 2 sent 3")
    before_validation, _ = fit(tmp_path / "validated", late=True, every=3)
    assert "end 3 read 3 sent 4" in " ".join(before_validation)  # Lightning validates after the third step
    assert events[-1] == "read 10"  # nothing comes after it


def test_a_checkpoint_comes_after_the_numbers_of_its_step(tmp_path):
    class Written(ModelCheckpoint):
        seen: list = []

        def _save_checkpoint(self, trainer, filepath):
            super()._save_checkpoint(trainer, filepath)
            self.seen.append((trainer.global_step, [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")]))

    saving = Written(dirpath=tmp_path / "saved", every_n_train_steps=2, save_top_k=-1)
    fit(tmp_path, late=True, every=1, more=(saving,))
    assert [step for step, _ in saving.seen] == [2, 4, 6, 8, 10]
    assert all(steps[-1] == step for step, steps in saving.seen)


def test_the_numbers_before_an_error_are_written(tmp_path):
    with pytest.raises(RuntimeError, match="no more"):
        fit(tmp_path, late=True, every=1, fails_at=3)
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
