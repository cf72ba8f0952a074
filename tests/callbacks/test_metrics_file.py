import json
import math
import resource
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from ltune.callbacks.learning_rate import LearningRate
from ltune.callbacks.metrics_file import JSONLines, read_metrics
from ltune.callbacks.step_numbers import StepNumbers
from ltune.callbacks.when import at_log_step
from ltune.errors import ResourceError


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_one_line_a_step_on_the_disk_at_once(tmp_path):
    logger = JSONLines(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    logger.log_metrics({"train/loss": 1.5, "train/lr": 1e-5}, step=10)
    assert lines(tmp_path / "run") == [{"step": 10, "train/loss": 1.5, "train/lr": 1e-5}]
    logger.save()
    logger.log_metrics({"val/loss": 2.0, "train/loss": 1.25}, step=10)
    logger.log_metrics({"train/loss": 1.0}, step=20)
    logger.log_hyperparams({"rank": 8})
    logger.finalize("success")
    assert lines(tmp_path / "run") == [{"step": 10, "train/loss": 1.25, "train/lr": 1e-5, "val/loss": 2.0}, {"step": 20, "train/loss": 1.0}]


def test_not_a_number_is_null(tmp_path):
    JSONLines(tmp_path).log_metrics({"a": math.nan, "b": -math.inf, "c": 0.1}, step=1)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "a": null, "b": null, "c": 0.1}\n'


def test_rewind_drops_later_steps_and_a_torn_line_and_goes_on(tmp_path):
    logger = JSONLines(tmp_path)
    for step in (5, 10, 15):
        logger.log_metrics({"train/loss": float(step)}, step=step)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 20, "train/lo')
    again = JSONLines(tmp_path)
    with pytest.warns(UserWarning, match="metrics.jsonl:4"):
        again.rewind(10)
    assert lines(tmp_path) == [{"step": 5, "train/loss": 5.0}, {"step": 10, "train/loss": 10.0}]
    again.log_metrics({"val/loss": 3.0}, step=10)
    again.log_metrics({"train/loss": 1.0}, step=15)
    assert lines(tmp_path) == [
        {"step": 5, "train/loss": 5.0},
        {"step": 10, "train/loss": 10.0, "val/loss": 3.0},
        {"step": 15, "train/loss": 1.0},
    ]
    again.rewind(0)
    assert lines(tmp_path) == []
    again.log_metrics({"train/loss": 2.0}, step=1)
    assert lines(tmp_path) == [{"step": 1, "train/loss": 2.0}]
    JSONLines(tmp_path / "absent").rewind(3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_a_full_disk_is_a_resource_error(tmp_path):
    logger = JSONLines(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        logger.log_metrics({"train/loss": 0.1}, step=1)
        with pytest.raises(ResourceError, match="metrics.jsonl"):
            logger.log_metrics({f"metric {number}": 0.1 for number in range(10)}, step=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Another(Callback):
    """Logs in Lightning's way, which counts steps from 0."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if at_log_step(trainer):
            pl_module.log("train/loss", outputs["loss"], on_step=True, on_epoch=False, batch_size=1)


class SaveAt(Callback):
    """Saves where ltune does: when the batch that took this optimizer step ends."""

    def __init__(self, step: int | None, path: Path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


class Tiny(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 2)

    def training_step(self, batch, _):
        return self.layer(batch).pow(2).mean()

    def validation_step(self, batch, _):
        self.log("val/loss", self.layer(batch).pow(2).mean(), batch_size=1)

    def on_validation_epoch_end(self):
        self.log("step", float(self.trainer.global_step))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.1)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 0.9**s), "interval": "step"},
        }


def fit(folder: Path, max_epochs: int, every: int, save_at: int | None = None, **options) -> None:
    torch.manual_seed(1)
    rows = DataLoader(torch.randn(14, 4), batch_size=4)  # 4 steps an epoch
    trainer = Trainer(
        default_root_dir=folder, max_epochs=max_epochs, log_every_n_steps=every, logger=JSONLines(folder), accelerator="cpu",
        callbacks=[Another(), LearningRate(), StepNumbers(), SaveAt(save_at, folder / "checkpoint")], num_sanity_val_steps=0,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Tiny(), rows, DataLoader(torch.randn(2, 4)), **options)


def test_with_a_trainer_each_step_is_one_line_under_its_own_number_with_the_rate_it_used(tmp_path):
    fit(tmp_path, max_epochs=3, every=1)
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 13))
    assert [line["step"] for line in lines(tmp_path) if "val/loss" in line] == [4, 8, 12]
    for line in lines(tmp_path):
        assert line["train/lr"] == 0.1 * 0.9 ** (line["step"] - 1)
        assert set(line) - {"val/loss"} == {"step", "train/loss", "train/lr"}


def test_every_third_step(tmp_path):
    fit(tmp_path, max_epochs=3, every=3)
    assert [(line["step"], "train/loss" in line, "val/loss" in line) for line in lines(tmp_path)] == [
        (3, True, False), (4, False, True), (6, True, False), (8, False, True), (9, True, False), (12, True, True),
    ]  # fmt: skip


@pytest.mark.parametrize("step", [3, 5, 8])  # a log step, none, the end of an epoch
def test_a_resumed_trainer_logs_under_the_same_numbers(tmp_path, step):
    fit(tmp_path / "straight", max_epochs=4, every=3)
    fit(tmp_path / "resumed", max_epochs=3, every=3, save_at=step)
    JSONLines(tmp_path / "resumed").rewind(step)
    fit(tmp_path / "resumed", max_epochs=4, every=3, ckpt_path=tmp_path / "resumed" / "checkpoint")
    numbers = [
        [(line["step"], "train/loss" in line) for line in read_metrics(tmp_path / run / "metrics.jsonl")] for run in ("straight", "resumed")
    ]
    assert numbers[0] == numbers[1]
