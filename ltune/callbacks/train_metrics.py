"""Logs the step's loss, the gradient's norm and the epoch."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ltune.callbacks.step_numbers import tell
from ltune.callbacks.when import at_log_step
from ltune.unobserved import Unhooked


class TrainMetrics(Unhooked, Callback):
    """Logs train/loss, train/grad_norm, train/epoch, and what the objective tells of the step."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int) -> None:
        if not at_log_step(trainer):
            return
        steps: Any = pl_module.steps  # Lightning's class does not declare our module's attributes
        epoch = trainer.current_epoch + (batch_idx + 1) / trainer.num_training_batches
        outcome, metrics = steps.outcome, steps.metrics()
        tell(
            trainer,
            lambda: {
                "train/loss": outcome.loss,
                "train/grad_norm": outcome.norm,
                "train/epoch": epoch,
                **{f"train/{name}": value for name, value in metrics().items()},
            },
        )
