"""SIGTERM and SIGINT ask for a stop; training ends at the next whole optimizer step, after a checkpoint."""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ltune.errors import LtuneError
from ltune.unobserved import Unhooked

Handler = Callable[[int, FrameType | None], Any] | int | None  # what signal.signal takes and gives


class Stopped(LtuneError):
    """A signal ended training after a checkpoint.

    Args:
        signum: The signal; the exit code is 128 + signum.
        step: Optimizer steps done.
    """

    def __init__(self, signum: int, step: int) -> None:
        name = signal.Signals(signum).name
        super().__init__(f"stopped by {name} after step {step}; the checkpoint is written.\nThe same command goes on from there.")
        self.exit_code = 128 + signum


class GracefulStop(Unhooked, Callback):
    """Takes SIGTERM and SIGINT while training; a second SIGINT leaves at once, with the last checkpoint as it is."""

    def __init__(self) -> None:
        self.signum = 0
        self._previous: dict[int, Handler] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for signum in (signal.SIGTERM, signal.SIGINT):
            self._previous[signum] = signal.signal(signum, self._request)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        while self._previous:
            signum, handler = self._previous.popitem()
            signal.signal(signum, handler)

    def _request(self, signum: int, frame: FrameType | None) -> None:
        if self.signum and signum == signal.SIGINT:
            os._exit(128 + signum)
        self.signum = signum
        print(f"{signal.Signals(signum).name}: finishing this optimizer step, then saving ...", file=sys.stderr, flush=True)

    def requested(self, trainer: Trainer) -> bool:
        """Whether any rank was asked to stop; all ranks get the same answer."""
        if trainer.world_size == 1:
            return bool(self.signum)
        return trainer.strategy.reduce_boolean_decision(bool(self.signum), all=False)
