"""Logs the learning rate. It is read before the optimizer steps: when the batch ends, the schedule has already moved on."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from ltune.callbacks.step_numbers import tell
from ltune.callbacks.when import at_log_step
from ltune.unobserved import Unhooked


class LearningRate(Unhooked, Callback):
    """Logs train/lr, the learning rate that the step was taken with (that of the first parameter group)."""

    def __init__(self) -> None:
        self._used: float | torch.Tensor = 0.0

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Remember it. A tensor is copied where it is: reading it would make every step wait for the device."""
        rate = optimizer.param_groups[0]["lr"]
        self._used = rate.detach().clone() if isinstance(rate, torch.Tensor) else rate

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int) -> None:
        """Log it."""
        if at_log_step(trainer):
            used = self._used
            tell(trainer, lambda: {"train/lr": float(used)})
