"""What an optimizer step came to, and the stop if that is no number."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer

from ltune.errors import NonFiniteError
from ltune.moment import Moment
from ltune.objectives.metrics import Metrics, parts_of, values_of


@dataclass
class Part:
    """A micro-batch's share of the step's loss, and its rows."""

    loss: Tensor  # ()
    rows: tuple[int, ...]
    metrics: Metrics = field(default_factory=dict)  # shares too


@dataclass
class Outcome:
    """Loss and gradient norm of a step. The device may still be at it; reading waits."""

    values: Tensor  # (2,): the loss over all ranks, and the gradient's norm before clipping
    parts: list[Part]
    step: int
    ready: Moment | None = None  # when the values are on the host

    @property
    def loss(self) -> float:
        """Of the step."""
        return self._read()[0]

    @property
    def norm(self) -> float:
        """Of the gradient."""
        return self._read()[1]

    def metrics(self, add_ranks: Callable[[Tensor], Tensor]) -> Callable[[], dict[str, float]]:
        """The objective's, of the step. To be asked on all ranks, or on none; reading what is returned waits for the device.

        Args:
            add_ranks: Adds up a tensor over the ranks.
        """
        if not self.parts or not self.parts[0].metrics:
            return dict
        names = list(self.parts[0].metrics)
        sums = add_ranks(torch.stack([parts_of(part.metrics) for part in self.parts]).sum(0))
        on_host = sums.to("cpu", non_blocking=True)
        there = Moment(sums.device)

        def read() -> dict[str, float]:
            there.wait()
            return values_of(names, on_host)

        return read

    def _read(self) -> list[float]:
        if self.ready is not None:
            self.ready.wait()
        return self.values.tolist()

    def guard(self, optimizer: Optimizer) -> None:
        """Have a fused optimizer leave the step out, on the device, if something is not finite; the host can look later."""
        optimizer.found_inf = 1.0 - torch.isfinite(self.values).all().float()  # type: ignore[attr-defined]
        device = self.values.device
        self.values = self.values.to("cpu", non_blocking=True)
        self.ready = Moment(device)

    def check(self, place: Callable[[int], str], norm_too: bool) -> None:
        """Stop if the loss is not finite, or the gradient's norm.

        Args:
            place: Where a row came from.
            norm_too: Whether the norm counts.

        Raises:
            NonFiniteError: With the rows.
        """
        loss, norm = self._read()
        if not math.isfinite(loss):
            raise NonFiniteError(self._message("loss", loss, place))
        if norm_too and not math.isfinite(norm):
            raise NonFiniteError(self._message("gradient norm", norm, place))

    def _message(self, what: str, value: float, place: Callable[[int], str]) -> str:
        bad = [row for part in self.parts if not torch.isfinite(part.loss) for row in part.rows]
        elsewhere = what == "loss" and math.isfinite(sum(float(part.loss) for part in self.parts))
        bad = bad or [row for part in self.parts for row in part.rows if not elsewhere]
        places = ", ".join(place(row) for row in bad[:8]) + (" ..." if len(bad) > 8 else "")
        return (
            f"the {what} is {value} at step {self.step}; the optimizer step was not taken.\n"
            f"rows: {places or 'on another rank'}\n"
            "Look at these rows; a lower learning rate, a longer warm-up or bf16 instead of fp16 are the usual cures."
        )
