"""loss.png: the training and validation loss of a run, from its metrics.jsonl."""

import io
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from ltune.callbacks.metrics_file import read_metrics
from ltune.checkpoints.publish import write_atomically
from ltune.errors import ResourceError
from ltune.unobserved import Unhooked


class LossPlot(Unhooked, Callback):
    """Draws loss.png into the run folder when training ends, and when it ends with an error."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw."""
        if trainer.is_global_zero:
            plot(Path(trainer.default_root_dir) / "metrics.jsonl", Path(trainer.default_root_dir) / "loss.png")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Draw what there is. If that fails too (the disk is full, say), it must not hide the first error."""
        try:
            self.on_fit_end(trainer, pl_module)
        except (OSError, ResourceError) as error:
            rank_zero_warn(f"No loss.png: {error}")


def plot(metrics_path: Path, png_path: Path) -> bool:
    """Draw the curves of `metrics_path` into `png_path`, replaced atomically. False, and nothing is drawn, where no loss was logged."""
    lines = read_metrics(metrics_path) if metrics_path.exists() else []
    train, val = points(lines, "train/loss"), points(lines, "val/loss")
    if not train and not val:
        return False
    from matplotlib.figure import Figure  # takes a second; without pyplot there is no display and no global state

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    if train:
        steps, losses = zip(*train, strict=True)
        axes.plot(steps, losses, color="tab:blue", alpha=0.3, marker="." if len(train) == 1 else None, label="train/loss")
        axes.plot(steps, smoothed(list(losses)), color="tab:blue", label="train/loss, smoothed")
    if val:
        axes.plot(*zip(*val, strict=True), color="tab:orange", marker="o", label="val/loss")
    axes.set(xlabel="optimizer step", ylabel="loss", title=metrics_path.absolute().parent.name)
    axes.grid(alpha=0.3)
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_atomically(png_path, picture.getvalue())
    return True


def points(lines: list[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    """(step, value) wherever `name` was logged and finite."""
    return [(line["step"], line[name]) for line in lines if line.get(name) is not None and line["step"] is not None]


def smoothed(values: list[float]) -> list[float]:
    """Mean over a window of a tenth of the values, centred, so that the curve does not lag behind; shorter towards both ends."""
    reach = len(values) // 20
    windows = [values[max(0, middle - reach) : middle + reach + 1] for middle in range(len(values))]
    return [sum(window) / len(window) for window in windows]
