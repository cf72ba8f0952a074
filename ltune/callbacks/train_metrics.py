"""Logs the step's loss, the gradient's norm and the epoch; and, as ``step``, which optimizer step all metrics of this moment belong to."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ltune.callbacks.when import at_log_step, on_the_host


class TrainMetrics(Callback):
    """Logs train/loss, train/grad_norm, train/epoch, and what the objective tells of the step."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int) -> None:
        if not at_log_step(trainer):
            return
        steps: Any = pl_module.steps  # Lightning's class does not declare our module's attributes
        values = {
            "train/loss": steps.loss,
            "train/grad_norm": steps.grad_norm,
            "train/epoch": trainer.current_epoch + (batch_idx + 1) / trainer.num_training_batches,
            "step": float(trainer.global_step),
        }
        values |= {f"train/{name}": value for name, value in steps.metrics().items()}
        pl_module.log_dict(on_the_host(values), on_step=True, on_epoch=False, batch_size=1, rank_zero_only=True)
