"""A callback that stops its process during a given optimizer step, by Ctrl-C or worse; it runs in the process under test."""

import os
import signal

from lightning.pytorch import Callback


class StopAfter(Callback):
    """Sends a signal to its own process while ``step`` (counted from 1) is under way."""

    def __init__(self, step: int, signum: int = int(signal.SIGINT)) -> None:
        self.step = step
        self.signum = signum
        self.sent = False

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == self.step - 1 and not self.sent:
            self.sent = True
            os.kill(os.getpid(), self.signum)
