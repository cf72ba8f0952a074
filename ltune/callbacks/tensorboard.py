"""TensorBoard's event files in the run folder, each value once."""

from collections.abc import Mapping

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only


class TensorBoard(TensorBoardLogger):
    """The event files in the run folder. Every run has them, so naming it as ``trainer.logger`` changes nothing.

    Args:
        folder: The run folder; filled in.
    """

    def __init__(self, folder: str = "") -> None:
        super().__init__(save_dir=folder, name="tensorboard", version="")
        self._last: tuple | None = None

    def resume_after(self, step: int) -> None:
        """What was drawn after this step is drawn again."""
        self._kwargs["purge_step"] = step + 1

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:  # type: ignore[override]
        """A step that is saved has its metrics written before the save, and comes a second time from Lightning."""
        if (step, dict(metrics)) != self._last:
            self._last = (step, dict(metrics))
            super().log_metrics(metrics, step)
