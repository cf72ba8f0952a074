import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from ltune.callbacks.loss_plot import LossPlot, plot, points, smoothed

PNG = b"\x89PNG\r\n\x1a\n"


def write(folder: Path, *lines: dict) -> Path:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "metrics.jsonl"


def test_a_picture_of_train_and_val_loss(tmp_path):
    metrics = write(
        tmp_path, {"step": 1, "train/loss": 2.0}, {"step": 2, "train/loss": None}, {"step": 3, "train/loss": 1.0, "val/loss": 1.5}
    )
    assert plot(metrics, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(PNG)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loss.png", "metrics.jsonl"]


@pytest.mark.parametrize("lines", [[{"step": 1, "val/loss": 2.0}], [{"step": 1, "train/loss": 2.0}]])
def test_one_point_is_enough(tmp_path, lines):
    assert plot(write(tmp_path, *lines), tmp_path / "loss.png")


@pytest.mark.parametrize("lines", [[], [{"step": 1, "train/lr": 0.1}], [{"step": 1, "train/loss": None}]])
def test_nothing_is_drawn_without_a_loss(tmp_path, lines):
    assert not plot(write(tmp_path, *lines), tmp_path / "loss.png")
    assert not plot(tmp_path / "absent.jsonl", tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()


def test_smoothing_is_a_centred_mean_over_a_tenth():
    assert smoothed([1.0, 5.0, 3.0]) == [1.0, 5.0, 3.0]
    line = [float(number) for number in range(20)]
    assert smoothed(line) == [0.5, *line[1:-1], 18.5]


def test_points_leave_out_what_was_not_logged():
    assert points([{"step": 1, "a": 1.0}, {"step": 2}, {"step": 3, "a": None}, {"step": 4, "a": 0.0}], "a") == [(1, 1.0), (4, 0.0)]


class Failing(LightningModule):
    def __init__(self, error: Exception | None):
        super().__init__()
        self.error = error
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, _):
        if self.error:
            raise self.error
        return self.layer(batch).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, error: Exception | None) -> None:
    trainer = Trainer(
        default_root_dir=folder, max_steps=1, accelerator="cpu", callbacks=[LossPlot()], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Failing(error), DataLoader(torch.ones(2, 2)))


def test_it_is_drawn_when_training_ends(tmp_path):
    write(tmp_path, {"step": 1, "train/loss": 2.0})
    fit(tmp_path, None)
    assert (tmp_path / "loss.png").exists()


def test_it_is_drawn_after_an_error(tmp_path):
    write(tmp_path, {"step": 1, "train/loss": 2.0})
    with pytest.raises(ValueError, match="the first error"):
        fit(tmp_path, ValueError("the first error"))
    assert (tmp_path / "loss.png").exists()


def test_a_picture_that_cannot_be_written_does_not_hide_the_error(tmp_path):
    write(tmp_path, {"step": 1, "train/loss": 2.0})
    (tmp_path / "loss.png").mkdir()
    with pytest.raises(ValueError, match="the first error"), pytest.warns(UserWarning, match="No loss.png"):
        fit(tmp_path, ValueError("the first error"))
