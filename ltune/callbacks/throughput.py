"""Logs how fast it trains and how much memory that takes."""

import resource
import sys
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ltune.callbacks.step_numbers import tell
from ltune.callbacks.when import at_log_step
from ltune.moment import Moment
from ltune.unobserved import Unhooked


class Throughput(Unhooked, Callback):
    """Logs train/tokens_per_second and train/samples_per_second (all ranks together, padding and validation left out),
    train/step_seconds (of an optimizer step) and train/peak_memory_gib (of the fullest rank: what torch allocated on the GPU, or the
    process's resident memory on the CPU).

    The rates are those since the previous logged step; the first one's includes the warm-up.
    """

    def __init__(self) -> None:
        self._restart(torch.device("cpu"))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from here."""
        self._restart(trainer.strategy.root_device)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._stopped = Moment(trainer.strategy.root_device)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on where the clock was stopped."""
        self._pauses.append((self._stopped, Moment(trainer.strategy.root_device)))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int) -> None:
        """Count the step."""
        steps: Any = pl_module.steps
        trained = steps.collected  # of some objectives, others than those read
        self._tokens += trained.tokens
        self._samples += len(trained.rows)
        self._steps += 1
        if not at_log_step(trainer):
            return
        device = trainer.strategy.root_device
        mine = torch.tensor([self._tokens, self._samples, peak_memory(device)], dtype=torch.float64)
        if trainer.world_size > 1:
            mine = trainer.strategy.all_gather(mine.to(device)).to("cpu", non_blocking=True)
        read = partial(_rates, mine.reshape(-1, 3), self._steps, self._started, self._pauses, Moment(device))
        tell(trainer, read)
        self._restart(device)

    def _restart(self, device: torch.device) -> None:
        self._started = self._stopped = Moment(device)
        self._pauses: list[tuple[Moment, Moment]] = []
        self._tokens = self._samples = self._steps = 0


def _rates(ranks: torch.Tensor, steps: int, begin: Moment, pauses: list[tuple[Moment, Moment]], end: Moment) -> dict[str, float]:
    """Of (ranks, 3): tokens, samples and bytes since ``begin``. They are on the host when ``end`` is over, which is waited for."""
    seconds = end.since(begin) - sum(after.since(before) for before, after in pauses)
    return {
        "train/tokens_per_second": float(ranks[:, 0].sum()) / seconds,
        "train/samples_per_second": float(ranks[:, 1].sum()) / seconds,
        "train/step_seconds": seconds / steps,
        "train/peak_memory_gib": float(ranks[:, 2].max()) / 2**30,
    }


def peak_memory(device: torch.device) -> int:
    """The most memory used so far, in bytes: torch's allocations on a GPU, else the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
