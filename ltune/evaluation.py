"""The loss over all rows and ranks, and over those of each data set where there are several; and the objective's metrics."""

import torch
from torch import Tensor, nn
from torchmetrics import SumMetric

from ltune.objectives import Objective
from ltune.objectives.metrics import Metrics, parts_of, values_of


class Evaluation(nn.Module):
    """Sums of losses and metrics, and of what they are averages over.

    Args:
        names: Of the data sets, in the order of their loaders.
        objective: Tells what follows from the loss.
        device: Where the sums are kept.
    """

    def __init__(self, names: list[str], objective: Objective, device: torch.device) -> None:
        super().__init__()
        self.objective = objective
        self.names = ["", *(f"/{name}" for name in names)] if len(names) > 1 else [""]
        self.losses = nn.ModuleList(SumMetric() for _ in self.names)
        self.counts = nn.ModuleList(SumMetric() for _ in self.names)
        self.metrics: list[Tensor | None] = [None for _ in self.names]  # (2, metrics)
        self.metric_names: tuple[str, ...] = ()
        self.to(device)

    def add(self, loss: Tensor, metrics: Metrics, count: float, window: float, dataset: int) -> None:
        """A batch's shares, how many tokens or rows they are of and out of how many, and the number of its data set."""
        for number in {0, dataset + 1} & set(range(len(self.names))):
            self.losses[number].update(loss * window)  # type: ignore[operator]
            self.counts[number].update(count)  # type: ignore[operator]
            if metrics:
                self.metric_names = tuple(metrics)
                before, more = self.metrics[number], parts_of(metrics, weight=window)
                self.metrics[number] = more if before is None else before + more

    def results(self, stage: str, add_ranks) -> dict[str, Tensor | float]:
        """STAGE/loss and what follows from it, STAGE/METRIC, and the same /NAME for each of several data sets.

        Args:
            stage: val or test.
            add_ranks: Adds up a tensor over the ranks.
        """
        found: dict[str, Tensor | float] = {}
        for name, losses, counts, metrics in zip(self.names, self.losses, self.counts, self.metrics, strict=True):
            count = counts.compute().clamp(min=1)  # type: ignore[operator]
            loss = losses.compute() / count  # type: ignore[operator]
            found[f"{stage}/loss{name}"] = loss
            found |= {f"{stage}/{key}{name}": value for key, value in self.objective.derived(loss).items()}
            if metrics is not None:
                values = values_of(self.metric_names, add_ranks(metrics), weight=float(count))
                found |= {f"{stage}/{key}{name}": value for key, value in values.items()}
        return found
