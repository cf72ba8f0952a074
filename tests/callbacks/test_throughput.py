import math
import time
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from ltune.callbacks.throughput import Throughput, peak_memory

STEP, VALIDATION = 0.02, 0.3  # seconds


@dataclass
class Rows:
    """As much of a batch as this callback looks at."""

    values: torch.Tensor
    tokens: int
    rows: tuple[int, ...]


class Slow(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.steps = Namespace()

    def training_step(self, batch, _):
        self.steps.collected = batch
        time.sleep(STEP)
        return self.layer(batch.values).mean()

    def validation_step(self, batch, _):
        time.sleep(VALIDATION)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Seen(Callback):
    def __init__(self):
        self.metrics = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if values and values != self.metrics.get(max(self.metrics, default=0)):
            self.metrics[trainer.global_step] = values


def fit(folder: Path) -> dict[int, dict[str, float]]:
    batches = [Rows(torch.ones(3, 2), tokens=10 * (number + 1), rows=(0, 1, 2)) for number in range(6)]
    seen = Seen()
    trainer = Trainer(
        default_root_dir=folder, max_epochs=1, log_every_n_steps=3, val_check_interval=4,
        num_sanity_val_steps=0, logger=False,
        accelerator="cpu", callbacks=[Throughput(), seen], enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Slow(), DataLoader(batches, batch_size=None), DataLoader([batches[0]], batch_size=None))
    return seen.metrics


def test_rates_count_since_the_last_logged_step_without_validation(tmp_path):
    metrics = fit(tmp_path)
    assert sorted(metrics) == [1, 3, 6]
    for step, (batches, tokens) in {1: (1, 10), 3: (2, 50), 6: (3, 150)}.items():
        tokens_rate, samples_rate = metrics[step]["train/tokens_per_second"], metrics[step]["train/samples_per_second"]
        assert tokens_rate / samples_rate == pytest.approx(tokens / (3 * batches), rel=1e-6)
        assert batches * STEP <= tokens / tokens_rate < batches * STEP + VALIDATION


def test_peak_memory_is_that_of_the_process(tmp_path):
    before = peak_memory(torch.device("cpu"))
    held = torch.ones(50 * 2**20 // 4)
    assert before + 10 * 2**20 <= peak_memory(torch.device("cpu")) + held.nbytes
    assert 2**26 < before < 2**40
    assert fit(tmp_path)[6]["train/peak_memory_gib"] == pytest.approx(peak_memory(torch.device("cpu")) / 2**30, rel=0.2)
    assert math.isfinite(float(held.sum()))
