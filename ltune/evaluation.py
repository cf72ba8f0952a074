"""The loss per trained token over all rows and ranks, and over those of each data set where there are several."""

from typing import cast

import torch
from torch import Tensor, nn
from torchmetrics import SumMetric


class Evaluation(nn.Module):
    """Sums of token losses and of tokens.

    Args:
        names: Of the data sets, in the order of their loaders.
        device: Where the sums are kept.
    """

    def __init__(self, names: list[str], device: torch.device) -> None:
        super().__init__()
        self.names = ["", *(f"/{name}" for name in names)] if len(names) > 1 else [""]
        self.losses = nn.ModuleList(SumMetric() for _ in self.names)
        self.tokens = nn.ModuleList(SumMetric() for _ in self.names)
        self.to(device)

    def add(self, loss: Tensor, tokens: int, dataset: int) -> None:
        """A batch's sum of token losses, its trained tokens, and the number of its data set."""
        for number in {0, dataset + 1} & set(range(len(self.names))):
            cast(SumMetric, self.losses[number]).update(loss)
            cast(SumMetric, self.tokens[number]).update(tokens)

    def results(self, stage: str) -> dict[str, Tensor]:
        """STAGE/loss and STAGE/perplexity, and the same /NAME for each of several data sets."""
        found: dict[str, Tensor] = {}
        for name, losses, tokens in zip(self.names, self.losses, self.tokens, strict=True):
            loss = cast(SumMetric, losses).compute() / cast(SumMetric, tokens).compute().clamp(min=1)
            found |= {f"{stage}/loss{name}": loss, f"{stage}/perplexity{name}": loss.exp()}
        return found
