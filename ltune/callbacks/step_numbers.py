"""Hands a step's numbers to the loggers, all at once, while the device waits for the next step's work.

Lightning's ``log`` keeps books of each number for an epoch's average, which nobody asks for here. That takes a quarter of a millisecond a
number (measured), and rounds to single precision.
"""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ltune.callbacks.when import stepped


class StepNumbers(Callback):
    """Gives the loggers what callbacks before it in the list told of the step."""

    def __init__(self) -> None:
        self.told: dict[str, torch.Tensor] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int) -> None:
        """Before checkpoints are saved, so that what is resumed has them."""
        told, self.told = self.told, {}
        connector = trainer._logger_connector
        if not stepped(trainer) or not connector.should_update_logs:  # the first step's are for the display alone
            return
        if connector.metrics["log"]:  # logged by others, in Lightning's way, which counts steps from 0 unless told
            step = torch.tensor(trainer.global_step, dtype=torch.float64)
            pl_module.log("step", step, on_step=True, on_epoch=False, batch_size=1, rank_zero_only=True)
        connector.log_metrics(told, step=trainer.global_step)  # type: ignore[arg-type]


def tell(trainer: Trainer, values: dict[str, float]) -> None:
    """In on_train_batch_end: numbers of the step for the loggers, and for callbacks that watch some of them."""
    numbers = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
    trainer.callback_metrics.update(numbers)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, StepNumbers):
            callback.told.update(numbers)
