"""When to save, and the order of saving: publish, point ``latest`` at it, delete older ones. Only ever right after an optimizer step."""

import logging
import signal
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from ltune.callbacks.stop import GracefulStop, Stopped
from ltune.checkpoints.run import RunFolder
from ltune.checkpoints.store import CheckpointStore
from ltune.errors import UsageError
from ltune.unobserved import Unhooked

log = logging.getLogger(__name__)


class Checkpoints(Unhooked, Checkpoint):
    """Saves the trained weights, the optimizer and the position, so that the same command continues bit for bit.

    Args:
        every: Optimizer steps between saves; the end of each epoch is saved too.
        keep: Newest checkpoints kept.
    """

    def __init__(self, every: int = 100, keep: int = 2) -> None:
        if every < 1 or keep < 1:
            raise UsageError(f"checkpoint.every and checkpoint.keep are at least 1, got {every} and {keep}.")
        self.every = every
        self.keep = keep
        self._saved = -1
        self._validation_pending = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make up for a validation: a checkpoint is saved before that of its step.

        If the run was killed in between, Lightning would leave it out.
        """
        if self._validation_pending:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int) -> None:
        stop = next(callback for callback in trainer.callbacks if isinstance(callback, GracefulStop))  # type: ignore[attr-defined]
        requested = stop.requested(trainer)
        if requested or self._due(trainer):
            # This step's metrics first: Lightning would write them after us, and a kill in between would leave a hole in the curve.
            trainer._logger_connector.update_train_step_metrics()
            fetcher = trainer.fit_loop._data_fetcher
            assert fetcher is not None, "there is one while training"
            self._validation_pending = trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)
            self._save(trainer)
        if requested:
            raise Stopped(stop.signum or signal.SIGTERM, trainer.global_step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same checkpoint again, now with its validation done."""
        if self._validation_pending and trainer.state.fn == "fit":
            self._validation_pending = False
            if self._saved == trainer.global_step:
                self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Where training ended between two saves, by an early stop."""
        if trainer.global_step != self._saved:
            self._save(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Whether the validation of the saved step is still to come."""
        return {"validation_pending": self._validation_pending}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validation_pending = state_dict["validation_pending"]

    def _due(self, trainer: Trainer) -> bool:
        step = trainer.global_step
        return step % self.every == 0 or trainer.is_last_batch or step == trainer.max_steps

    def _save(self, trainer: Trainer) -> None:
        self._saved = trainer.global_step
        run = Path(trainer.default_root_dir)
        store = CheckpointStore(run / "checkpoints", keep=self.keep)
        facts = {"position": trainer.datamodule.state_dict()["trained_up_to"], **RunFolder(run).hashes()}  # type: ignore[attr-defined]
        trainer.save_checkpoint(store.path(trainer.global_step), storage_options=facts)
        if trainer.is_global_zero:
            store.mark_latest(trainer.global_step)
            store.prune()
        trainer.strategy.barrier("checkpoint saved")
