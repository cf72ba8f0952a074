"""A callback that presses Ctrl-C after a given optimizer step; it runs in the process under test."""

import os
import signal

from lightning.pytorch import Callback


class StopAfter(Callback):
    """Sends SIGINT to its own process once ``step`` optimizer steps are done."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_zero_grad(self, trainer, pl_module, optimizer) -> None:
        if trainer.global_step == self.step - 1 and trainer.fit_loop._should_accumulate() is False:
            os.kill(os.getpid(), signal.SIGINT)
