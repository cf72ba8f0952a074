"""The model in training, asked only for what objectives need: log-probabilities of the trained tokens."""

import inspect

import torch.nn.functional as F
from torch import Tensor, nn

from ltune.data.collate import Batch
from ltune.models.fast.model import FastModel


class Policy:
    """Runs the model on a batch. The head runs on trained positions only where the model allows it.

    Args:
        model: A causal language model, bare or wrapped by PEFT.
        forward_of: The bare model, whose signature tells whether the head can be told which positions to keep.
        fast: The quick way through the same weights, where there is one.
    """

    def __init__(self, model: nn.Module, forward_of: nn.Module, fast: FastModel | None = None) -> None:
        self.model = model
        self.fast = fast
        self.keeps_positions = "logits_to_keep" in inspect.signature(forward_of.forward).parameters

    def token_losses(self, batch: Batch) -> Tensor:
        """Minus the log-probability of each trained token: (N,) float32, N = ``len(batch.targets)``, 0 allowed."""
        if self.fast is not None and batch.flat:
            places = batch.starts, batch.longest
            return self.fast.token_losses(batch.input_ids[0], batch.position_ids[0], *places, batch.predict_at, batch.targets)
        logits = self._logits(batch)  # (N, V)
        return F.cross_entropy(logits.float(), batch.targets, reduction="none")

    def _logits(self, batch: Batch) -> Tensor:
        # A cache would make transformers take restarting positions for a continued row, and rows would see each other.
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "position_ids": batch.position_ids}
        if batch.flat and self.keeps_positions:
            return self.model(**inputs, use_cache=False, logits_to_keep=batch.predict_at).logits[0]
        return self.model(**inputs, use_cache=False).logits.flatten(0, 1)[batch.predict_at]
