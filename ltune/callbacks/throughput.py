"""Logs how fast it trains and how much memory that takes."""

import resource
import sys
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ltune.callbacks.step_numbers import tell
from ltune.callbacks.when import at_log_step, stepped


class Throughput(Callback):
    """Logs train/tokens_per_second and train/samples_per_second (all ranks together, padding and validation left out),
    train/step_seconds (of an optimizer step) and train/peak_memory_gib (of the fullest rank: what torch allocated on the GPU, or the
    process's resident memory on the CPU).

    The rates are those since the previous logged step; the first one's includes the warm-up.
    """

    def __init__(self) -> None:
        self._restart()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from here."""
        self._restart()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on where the clock was stopped."""
        self._started += time.perf_counter() - self._paused

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int) -> None:
        """Count the step; the device is only waited for when logging."""
        steps: Any = pl_module.steps
        trained = steps.collected  # of some objectives, others than those read
        self._tokens += trained.tokens
        self._samples += len(trained.rows)
        self._steps += stepped(trainer)
        if not at_log_step(trainer):
            return
        device = trainer.strategy.root_device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - self._started
        mine = torch.tensor([self._tokens, self._samples, peak_memory(device)], dtype=torch.float64)
        if trainer.world_size > 1:
            mine = trainer.strategy.all_gather(mine.to(device)).cpu()
        ranks = mine.reshape(-1, 3)
        values = {
            "train/tokens_per_second": float(ranks[:, 0].sum()) / seconds,
            "train/samples_per_second": float(ranks[:, 1].sum()) / seconds,
            "train/step_seconds": seconds / self._steps,
            "train/peak_memory_gib": float(ranks[:, 2].max()) / 2**30,
        }
        tell(trainer, values)
        self._restart()

    def _restart(self) -> None:
        self._started = self._paused = time.perf_counter()
        self._tokens = self._samples = self._steps = 0


def peak_memory(device: torch.device) -> int:
    """The most memory used so far, in bytes: torch's allocations on a GPU, else the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
