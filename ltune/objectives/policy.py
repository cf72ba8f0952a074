"""The model in training, asked only for what objectives need: log-probabilities of the trained tokens, and what the head reads."""

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltune.data.collate import Batch
from ltune.models.fast.model import FastModel


class Policy:
    """Runs the model on a batch. The head runs on trained positions only where the model allows it.

    N is the number of trained tokens, ``len(batch.targets)``; 0 is allowed.

    Args:
        model: A causal language model, bare or wrapped by PEFT.
        forward_of: The bare model, whose signature tells whether the head can be told which positions to keep.
        fast: The quick way through the same weights, where there is one.
    """

    def __init__(self, model: nn.Module, forward_of: nn.Module, fast: FastModel | None = None) -> None:
        self.model = model
        self.bare: Any = forward_of
        self.fast = fast
        self.keeps_positions = "logits_to_keep" in inspect.signature(forward_of.forward).parameters

    def token_losses(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """Minus the log-probability of each trained token, logits being divided by ``temperature``: (N,) float32."""
        if self.fast is not None and batch.flat:
            return self.fast.token_losses(*_places(batch), batch.predict_at, batch.targets, temperature)
        return F.cross_entropy(self._logits(batch, batch.predict_at).float() / temperature, batch.targets, reduction="none")

    def hidden(self, batch: Batch, at: Tensor | None = None) -> Tensor:
        """What the head reads at the positions ``at`` of the flattened input; None: before the trained tokens. (N, H), in the products'
        dtype."""
        at = batch.predict_at if at is None else at
        if self.fast is not None and batch.flat:
            return self.fast.hidden(*_places(batch), at)
        return self._logits_and_hidden(batch, at)[1]

    def logits(self, batch: Batch) -> Tensor:
        """Of the next token before each trained one: (N, V), in the products' dtype. All at once: mind the memory."""
        if self.fast is not None and batch.flat:
            return self.fast.logits_from(self.fast.hidden(*_places(batch), batch.predict_at))
        return self._logits(batch, batch.predict_at)

    def losses_and_hidden(self, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """``token_losses`` (N,) and ``hidden`` (N, H) by one pass."""
        if self.fast is not None and batch.flat:
            hidden = self.fast.hidden(*_places(batch), batch.predict_at)
            return self.fast.losses_from(hidden, batch.targets, temperature), hidden
        logits, hidden = self._logits_and_hidden(batch, batch.predict_at)
        return F.cross_entropy(logits.float() / temperature, batch.targets, reduction="none"), hidden

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """The model as it was loaded, for passes without gradient."""
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if self.fast is not None:
                stack.enter_context(self.fast.without_adapter())
            if self.fast is None or self._has_whole_modules:
                stack.enter_context(self.model.disable_adapter())  # type: ignore[operator]  # PEFT's
            yield

    @contextmanager
    def with_adapter(self, name: str) -> Iterator[None]:
        """The model with another of its adapters, for passes without gradient."""
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if self.fast is not None:
                stack.enter_context(self.fast.with_adapter(name))
            if self.fast is None or self._has_whole_modules:
                stack.enter_context(_active(self.model, name))
            yield

    @cached_property
    def _has_whole_modules(self) -> bool:
        """Whether PEFT trains some modules whole, which the quick way would go on taking from it."""
        from peft.utils import ModulesToSaveWrapper

        return any(isinstance(module, ModulesToSaveWrapper) for module in self.model.modules())

    def _logits(self, batch: Batch, at: Tensor) -> Tensor:
        # A cache would make transformers take restarting positions for a continued row, and rows would see each other.
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "position_ids": batch.position_ids}
        if batch.flat and self.keeps_positions:
            return self.model(**inputs, use_cache=False, logits_to_keep=at).logits[0]
        return self.model(**inputs, use_cache=False).logits.flatten(0, 1)[at]

    def _logits_and_hidden(self, batch: Batch, at: Tensor) -> tuple[Tensor, Tensor]:
        seen: list[Tensor] = []
        hook = self.bare.get_output_embeddings().register_forward_pre_hook(lambda head, inputs: seen.append(inputs[0]))
        try:
            logits = self._logits(batch, at)
        finally:
            hook.remove()
        hidden = seen[0].flatten(0, 1)
        return logits, hidden if batch.flat and self.keeps_positions else hidden[at]


@contextmanager
def _active(model: Any, name: str) -> Iterator[None]:
    before = model.active_adapter
    model.base_model.set_adapter(name, inference_mode=True)
    try:
        yield
    finally:
        model.base_model.set_adapter(before)  # which also makes it trainable again


def _places(batch: Batch) -> tuple[Tensor, Tensor, Tensor, int]:
    return batch.input_ids[0], batch.position_ids[0], batch.starts, batch.longest
