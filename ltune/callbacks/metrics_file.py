"""metrics.jsonl: one JSON object a line, {"step": 10, "train/loss": 1.2327, ...}; `step` is the number of optimizer steps taken.

JSON has no NaN or infinity: such a value is written as null, "not a finite number here"; leaving it out would be "not logged".
"""

import json
import math
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from ltune.checkpoints.publish import disk_errors, write_atomically


class JSONLines(Logger):
    """Appends metrics to FOLDER/metrics.jsonl, on rank zero only. Hyper-parameters are not its business.

    Each call is on the disk at once. What comes later for the same step is merged into its line, which is the file's last.

    Args:
        folder: The run folder; made when the first metrics come.
    """

    def __init__(self, folder: Path | str) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.jsonl"
        self._last: dict[str, Any] = {}
        self._last_at: int | None = None  # where the last line begins, in bytes; None: append a new one

    @property
    def name(self) -> str:
        """What Lightning calls it."""
        return "metrics"

    @property
    def version(self) -> str:
        """There is one a run folder."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Ignored."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write one step's metrics. Raises ResourceError when the disk is full."""
        finite = {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
        if self._last_at is None or step != self._last.get("step"):
            self._last, self._last_at = {"step": step}, None
        self._last |= finite
        line = json.dumps(self._last, allow_nan=False).encode("utf-8") + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with disk_errors(self.path, len(line)), open(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
            end = file.seek(0, os.SEEK_END)
            if self._last_at is None:
                self._last_at = end
            file.seek(self._last_at)
            file.write(line)
            file.truncate()

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Make the file what it was after `step` optimizer steps (0: a fresh start): later lines and a torn last one go.

        Call it before training.
        """
        self._last, self._last_at = {}, None
        if not self.path.exists():
            return
        kept = [line for line in read_metrics(self.path) if line["step"] is None or line["step"] <= step]
        lines = [json.dumps(line, allow_nan=False) + "\n" for line in kept]
        write_atomically(self.path, "".join(lines))
        if kept:
            self._last, self._last_at = kept[-1], sum(len(line.encode("utf-8")) for line in lines[:-1])


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, in order. One that cannot be read (torn by a kill, if it is the last) is left out, with a warning."""
    lines = []
    for number, text in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            line = json.loads(text)
        except ValueError:
            rank_zero_warn(f"{path}:{number}: not a line of metrics (a kill can tear the last one); left out.")
            continue
        lines.append(line)
    return lines
