"""Shows how far it is: a bar with the time left on a terminal, otherwise a plain line now and then. Both go to stderr.

It shows what others log, so it comes after them in the list of callbacks.
"""

import math
import time
from datetime import timedelta
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress

from ltune.callbacks.step_numbers import when_told
from ltune.callbacks.when import at_log_step
from ltune.unobserved import Unhooked

SHOWN = {  # metric: how it is shown
    "train/epoch": "epoch {:.2f}",
    "train/loss": "loss {:.4f}",
    "train/lr": "lr {:.2e}",
    "train/tokens_per_second": "tokens/s {:.0f}",
}
SHOWN_AFTER_VALIDATION = {"val/loss": "val/loss {:.4f}", "val/perplexity": "val/perplexity {:.3f}"}


class Progress(Unhooked, ProgressBar):
    """Progress of training (in optimizer steps), validation, test and prediction (in batches).

    Args:
        console: Where it is shown; null: stderr. Colours and bars only where that is a terminal; NO_COLOR is respected.
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__()
        self._console = console or Console(stderr=True)
        self._enabled = True
        self._bars: RichProgress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._remaining = Remaining()

    def enable(self) -> None:
        """Show progress."""
        self._enabled = True

    def disable(self) -> None:
        """Show nothing; Lightning calls this on the other ranks."""
        self._enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        self._console.print(*args, **kwargs, markup=False, highlight=False)

    # -- training -------------------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._remaining = Remaining()
        self._advance("training", trainer.global_step, trainer.estimated_stepping_batches)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int) -> None:
        if not self._enabled:
            return
        self._remaining.count_step()
        logged = at_log_step(trainer)
        if not logged and not self._on_terminal:
            return
        step, total = trainer.global_step, trainer.estimated_stepping_batches
        eta = self._remaining.of(total - step)
        if logged:
            when_told(trainer, partial(self._show, step, total, eta))
        else:
            self._advance("training", step, total, eta=eta)

    def _show(self, step: int, total: float, eta: str) -> None:
        values = self._metrics(SHOWN)
        if self._on_terminal:
            self._advance("training", step, total, values, eta)
        else:
            self._line([f"step {_of(step, total)}", *values, f"eta {eta}"])

    # -- evaluation -----------------------------------------------------------------------------------------------------------------

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._advance("validation", *_done(batches, batch_idx, dataloader_idx))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hide("validation")
        values = self._metrics(SHOWN_AFTER_VALIDATION)
        if values and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._line([f"step {_of(trainer.global_step, trainer.estimated_stepping_batches)}", *values])

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._evaluated("test", trainer.num_test_batches, batch_idx, dataloader_idx)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._evaluated("prediction", trainer.num_predict_batches, batch_idx, dataloader_idx)

    # -- the end --------------------------------------------------------------------------------------------------------------------

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stop()

    # -- showing --------------------------------------------------------------------------------------------------------------------

    @property
    def _on_terminal(self) -> bool:
        return self._console.is_interactive and not self._console.is_dumb_terminal

    def _metrics(self, shown: dict[str, str]) -> list[str]:
        values = self.trainer.callback_metrics
        return [text.format(float(values[name])) for name, text in shown.items() if name in values]

    def _evaluated(self, name: str, batches: list, batch_idx: int, dataloader_idx: int) -> None:
        done, total = _done(batches, batch_idx, dataloader_idx)
        self._advance(name, done, total)
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not self._on_terminal and (done in (1, total) or (every and done % every == 0)):
            self._line([f"{name} {_of(done, total)}"])

    def _line(self, parts: list[str]) -> None:
        if self._enabled:
            self._console.print("  ".join(parts), markup=False, highlight=False, soft_wrap=True)

    def _advance(self, name: str, done: int, total: float, values: list[str] | None = None, eta: str = "") -> None:
        if not self._enabled or not self._on_terminal:
            return
        if self._bars is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[values]}  {task.fields[eta]}"),
            )
            self._bars = RichProgress(*columns, console=self._console)
            self._bars.start()
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=_finite(total), values="", eta="")
        fields: dict[str, Any] = {"eta": f"eta {eta}" if eta else ""} | ({"values": "  ".join(values)} if values is not None else {})
        self._bars.update(self._tasks[name], completed=done, total=_finite(total), visible=True, **fields)

    def _hide(self, name: str) -> None:
        if self._bars is not None and name in self._tasks:
            self._bars.remove_task(self._tasks.pop(name))

    def _stop(self) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._bars, self._tasks = None, {}


class Remaining:
    """Estimates the time left from the steps that this process has taken, without the first few, which are slower.

    Args:
        skip: How many first steps are left out.
    """

    def __init__(self, skip: int = 3) -> None:
        self._skip = skip
        self._steps = 0
        self._since = 0.0

    def count_step(self) -> None:
        """Call it after each optimizer step."""
        self._steps += 1
        if self._steps <= self._skip:
            self._since = time.monotonic()

    def of(self, left: float) -> str:
        """Right after a step, for how many are left: "0:03:12", or "?" where that cannot be told yet."""
        counted = self._steps - self._skip
        if counted < 1 or not math.isfinite(left):
            return "?" if left else _duration(0)
        return _duration((time.monotonic() - self._since) / counted * max(left, 0))


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _done(batches: list, batch_idx: int, dataloader_idx: int) -> tuple[int, float]:
    """Batches done and in all, over all data loaders."""
    return int(sum(batches[:dataloader_idx])) + batch_idx + 1, sum(batches)


def _of(done: int, total: float) -> str:
    return f"{done}/{_finite(total)}" if _finite(total) else str(done)


def _finite(total: float) -> int | None:
    return int(total) if math.isfinite(total) and total >= 0 else None
