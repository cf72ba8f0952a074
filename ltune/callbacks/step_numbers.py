"""Hands a step's numbers to the loggers, all at once, while the device is at the next step.

On CUDA the host is ahead of the device. Were it to wait for a step's numbers, the device would have nothing to do until the next step's
work is sent, which takes milliseconds; so they are read when that is on its way. Lightning's ``log`` keeps books of each number for an
epoch's average, which nobody asks for here. That takes a quarter of a millisecond a number (measured), and rounds to single precision.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from ltune.unobserved import Unhooked

Read = Callable[[], dict[str, float]]  # may wait for the device; the same on all ranks, and no rank waits for another in it


class StepNumbers(Unhooked, Callback):
    """Gives the loggers what callbacks before it in the list told of the step, and then whoever waits for that its turn.

    Args:
        late: Whether the next step's work is sent first; null: on CUDA, unless somebody else's callback might look at the numbers, or
            one that watches some of them.
    """

    def __init__(self, late: bool | None = None) -> None:
        self.late = late
        self.told: list[Read] = []  # of the step under way
        self.waiting: list[Callable[[], object]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int) -> None:
        told, self.told = self.told, []
        connector = trainer._logger_connector
        logged = connector.should_update_logs  # the first step's numbers are for the display alone
        if logged and connector.metrics["log"]:  # logged by others, in Lightning's way, which counts steps from 0 unless told
            step = torch.tensor(trainer.global_step, dtype=torch.float64)
            pl_module.log("step", step, on_step=True, on_epoch=False, batch_size=1, rank_zero_only=True)
        if told or logged:
            self.waiting.append(partial(hand_over, trainer, told, trainer.global_step if logged else None))
        if not (_unseen(trainer) if self.late is None else self.late):
            self.look()

    def look(self) -> None:
        """Hand over what waits."""
        waiting, self.waiting = self.waiting, []
        for do in waiting:
            do()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """The step that has been told of is over, or about to be, and the next one's forward and backward are on their way."""
        self.look()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        """Before it is saved, so that what is resumed has them."""
        self.look()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Its numbers come after the step's."""
        self.look()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Averages of the epoch come after its last step's numbers."""
        self.look()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last step's."""
        self.look()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """What the device still gives; it may have failed itself, which must not hide the first error."""
        with suppress(Exception):
            self.look()


def tell(trainer: Trainer, read: Read) -> None:
    """In on_train_batch_end: numbers of the step for the loggers, and for callbacks that watch some of them."""
    numbers = _of(trainer)
    if numbers is None:
        trainer.callback_metrics.update(_tensors(read()))
    else:
        numbers.told.append(read)


def when_told(trainer: Trainer, do: Callable[[], object]) -> None:
    """In on_train_batch_end of a later callback: once the step's numbers are there; at once if they are."""
    numbers = _of(trainer)
    if numbers is None or not numbers.waiting:
        do()
    else:
        numbers.waiting.append(do)


def hand_over(trainer: Trainer, told: list[Read], step: int | None) -> None:
    """Read all, for callbacks and, unless ``step`` is None, for the loggers."""
    values = _tensors({name: value for read in told for name, value in read().items()})
    trainer.callback_metrics.update(values)
    if step is not None:
        trainer._logger_connector.log_metrics(values, step=step)  # type: ignore[arg-type]


def _of(trainer: Trainer) -> StepNumbers | None:
    return next((callback for callback in trainer.callbacks if isinstance(callback, StepNumbers)), None)  # type: ignore[attr-defined]


def _unseen(trainer: Trainer) -> bool:
    """Whether nobody could tell that the numbers come late."""
    if trainer.strategy.root_device.type != "cuda":
        return False
    homes = ("ltune.", "lightning.pytorch.")
    return all(
        type(callback).__module__.startswith(homes) and not getattr(callback, "monitor", None)
        for callback in trainer.callbacks  # type: ignore[attr-defined]
    )


def _tensors(values: dict[str, float]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
