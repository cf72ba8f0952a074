import io
import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from torch.utils.data import DataLoader

from ltune.callbacks import progress
from ltune.callbacks.progress import Progress, Remaining
from ltune.callbacks.when import at_log_step


class Metrics(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if at_log_step(trainer):
            values = {
                "train/epoch": trainer.global_step / 10,
                "train/loss": 1.23274,
                "train/lr": 1.96e-5,
                "train/tokens_per_second": 5321.4,
            }
            pl_module.log_dict(values, on_step=True, on_epoch=False)


class Tiny(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, _):
        return self.layer(batch).mean()

    def validation_step(self, batch, _):
        self.log("val/loss", torch.tensor(2.5), batch_size=1)

    def predict_step(self, batch, _, dataloader_idx=0):
        return self.layer(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer_with(bar: Progress, folder: Path, **options) -> Trainer:
    return Trainer(
        default_root_dir=folder, log_every_n_steps=5, accelerator="cpu", callbacks=[Metrics(), bar],
        logger=False, enable_checkpointing=False, enable_model_summary=False, **options,
    )  # fmt: skip


ROWS = DataLoader(torch.ones(10, 2))


def test_plain_lines_where_there_is_no_terminal(tmp_path):
    shown = io.StringIO()
    trainer = trainer_with(Progress(Console(file=shown)), tmp_path, max_epochs=1)
    trainer.fit(Tiny(), ROWS, DataLoader(torch.ones(2, 2)))
    values = "loss 1.2327  lr 1.96e-05  tokens/s 5321"
    assert shown.getvalue().splitlines() == [
        f"step 1/10  epoch 0.10  {values}  eta ?",
        f"step 5/10  epoch 0.50  {values}  eta 0:00:00",
        f"step 10/10  epoch 1.00  {values}  eta 0:00:00",
        "step 10/10  val/loss 2.5000",
    ]
    assert "\r" not in shown.getvalue()
    assert "\x1b" not in shown.getvalue()


def test_lines_go_to_stderr_and_lightning_adds_no_bar_of_its_own(tmp_path, capfd):
    bar = Progress()
    trainer = trainer_with(bar, tmp_path, max_epochs=1)
    assert trainer.progress_bar_callback is bar
    trainer.fit(Tiny(), ROWS)
    out, err = capfd.readouterr()
    assert "step" not in out
    assert "step 10/10" in err


def test_a_bar_on_a_terminal(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, color_system="standard", width=150, _environ={"TERM": "xterm"})
    trainer_with(Progress(console), tmp_path, max_epochs=1).fit(Tiny(), ROWS, DataLoader(torch.ones(2, 2)))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue())
    assert re.search(r"training ━+ 10/10 epoch 1.00  loss 1.2327  lr 1.96e-05  tokens/s 5321  eta 0:00:00", text)
    assert "step 10/10  val/loss 2.5000" in text
    assert "\x1b[3" in shown.getvalue()


def test_no_color_is_respected(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=150)
    trainer_with(Progress(console), tmp_path, max_epochs=1).fit(Tiny(), ROWS)
    assert "10/10" in shown.getvalue()
    assert not re.search(r"\x1b\[[0-9;]*3[0-9][;m]", shown.getvalue())


def test_nothing_is_shown_when_disabled(tmp_path):
    for options in ({}, {"force_terminal": True}):
        shown = io.StringIO()
        bar = Progress(Console(file=shown, **options))
        bar.disable()
        trainer_with(bar, tmp_path, max_epochs=1).fit(Tiny(), ROWS)
        assert shown.getvalue() == ""


def test_prediction_is_counted_in_batches(tmp_path):
    shown = io.StringIO()
    trainer_with(Progress(Console(file=shown)), tmp_path).predict(Tiny(), [DataLoader(torch.ones(4, 2)), DataLoader(torch.ones(3, 2))])
    assert shown.getvalue().splitlines() == ["prediction 1/7", "prediction 5/7", "prediction 7/7"]


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets, in seconds."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_the_first_steps_do_not_count_for_the_time_left(clock):
    remaining = Remaining(skip=2)
    seen = []
    for seconds, left in ((100, 102), (50, 101), (2, 100), (4, 99)):
        clock[0] += seconds
        remaining.count_step()
        seen.append(remaining.of(left))
    assert seen == ["?", "?", "0:03:20", "0:04:57"]


def test_without_an_end_there_is_no_time_left(clock):
    remaining = Remaining(skip=0)
    remaining.count_step()
    assert remaining.of(float("inf")) == "?"
