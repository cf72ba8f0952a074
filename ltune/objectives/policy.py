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
from ltune.models.attention import assert_rows_isolated, evaluating
from ltune.models.fast.build import quick_way
from ltune.models.fast.model import FastModel, scaling_of_logits
from ltune.models.fast.tiles import Lent, Rows
from ltune.models.load import enable_gradient_checkpointing
from ltune.models.noise import with_noise
from ltune.models.precision import compute_dtype
from ltune.models.row_attention import attend_by_rows


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

    @property
    def training(self) -> bool:
        """Whether it is being trained just now, not validated."""
        return self.model.training

    def token_losses(self, batch: Batch, *, smoothing: float = 0.0, temperature: float = 1.0) -> Tensor:
        """Minus the log-probability of each trained token: (N,) float32.

        Args:
            batch: The batch.
            smoothing: Share of each target that is spread over all tokens, as torch's ``label_smoothing``.
            temperature: That logits are divided by.
        """
        if self.fast is not None and batch.flat:
            return self.fast.token_losses(*self._places(batch), batch.targets, smoothing, temperature)
        logits = _divided(self._logits(batch, batch.predict_at).float(), temperature)
        return F.cross_entropy(logits, batch.targets, reduction="none", label_smoothing=smoothing)

    def hidden(self, batch: Batch, at: Tensor | None = None) -> Tensor:
        """What the head reads at the positions ``at`` of the flattened input; None: before the trained tokens. (N, H), in the products'
        dtype."""
        if self.fast is not None and batch.flat:
            return self.fast.hidden(*self._places(batch, at))
        at = batch.predict_at if at is None else at
        if self.has_plain_head:
            return self.bare.base_model(**_inputs(batch), use_cache=False).last_hidden_state.flatten(0, 1)[at]
        return self._logits_and_hidden(batch, at)[1]

    @cached_property
    def has_plain_head(self) -> bool:
        """Whether the logits are ``head`` of ``hidden`` and nothing more, seen on a few tokens."""
        if self.fast is not None:
            return True
        decoder = self.bare.base_model
        if decoder is self.bare or scaling_of_logits(self.bare):
            return False
        ids = torch.arange(3, device=self.bare.device)[None]
        with torch.no_grad(), evaluating(self.bare):
            logits = self.bare(ids, use_cache=False).logits
            read = decoder(ids, use_cache=False).last_hidden_state
            return torch.allclose(self.bare.get_output_embeddings()(read).float(), logits.float(), atol=1e-5, rtol=1e-3)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (n, V) of what is read (n, H), where the model has a plain head."""
        return self.fast.logits_from(hidden) if self.fast is not None else self.bare.get_output_embeddings()(hidden)

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.bare.get_output_embeddings().weight.shape[0]

    def logits(self, batch: Batch) -> Tensor:
        """Of the next token before each trained one: (N, V), in the products' dtype. All at once: mind the memory."""
        if self.fast is not None and batch.flat:
            return self.fast.logits_from(self.fast.hidden(*self._places(batch)))
        return self._logits(batch, batch.predict_at)

    def losses_and_hidden(self, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """``token_losses`` (N,) and ``hidden`` (N, H) by one pass."""
        if self.fast is not None and batch.flat:
            hidden = self.fast.hidden(*self._places(batch))
            return self.fast.losses_from(hidden, batch.targets, temperature=temperature), hidden
        logits, hidden = self._logits_and_hidden(batch, batch.predict_at)
        return F.cross_entropy(_divided(logits.float(), temperature), batch.targets, reduction="none"), hidden

    @contextmanager
    def noise(self, batch: Batch, alpha: float) -> Iterator[None]:
        """Within it the batch's embedded tokens have NEFTune's noise (models/noise.py); 0: none."""
        if not alpha:
            yield
            return
        noisy = lambda embedded: with_noise(embedded, batch.starts, batch.attention_mask, alpha)  # noqa: E731
        if self.fast is not None and batch.flat:
            with self.fast.embedding(noisy):
                yield
            return
        hook = self.bare.get_input_embeddings().register_forward_hook(lambda module, inputs, output: noisy(output))
        try:
            yield
        finally:
            hook.remove()

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

    def _places(self, batch: Batch, at: Tensor | None = None) -> tuple[Tensor, Tensor, Rows, Tensor]:
        """The quick way's tokens, their positions, rows, and the places that are read."""
        assert self.fast is not None
        compact = batch.compact
        if at is not None or compact is None or not self.fast.lends:
            rows = Rows(batch.starts, batch.longest, lengths=batch.lengths)
            return batch.input_ids[0], batch.position_ids[0], rows, batch.predict_at if at is None else at
        starts, lenders, borrowed, borrowers = compact.places
        lent = Lent(lenders, borrowed, borrowers, compact.borrowed) if compact.borrowed else None
        rows = Rows(starts, compact.longest, lent, compact.lengths, compact.loans)
        return compact.input_ids, compact.position_ids, rows, compact.predict_at

    def _logits(self, batch: Batch, at: Tensor) -> Tensor:
        # A cache would make transformers take restarting positions for a continued row, and rows would see each other.
        if batch.flat and self.keeps_positions:
            logits = self.model(**_inputs(batch), use_cache=False, logits_to_keep=at).logits
            return logits.squeeze(0)  # [0] would be copied in the backward pass
        return self.model(**_inputs(batch), use_cache=False).logits.flatten(0, 1)[at]

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


def _divided(logits: Tensor, temperature: float) -> Tensor:
    """Without a copy where that changes nothing."""
    return logits if temperature == 1.0 else logits / temperature


def _inputs(batch: Batch) -> dict[str, Tensor | None]:
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "position_ids": batch.position_ids}


def policy_of(model: nn.Module, bare: Any, precision: str, flat: bool, quick: bool, again: bool = False) -> Policy:
    """The quickest policy that is right.

    Args:
        model: Bare, or wrapped by PEFT.
        bare: The model without what wraps it.
        precision: The trainer's.
        flat: Whether rows lie end to end.
        quick: Whether ltune's own layers are wanted where they can serve the model.
        again: Whether transformers' layers compute activations again in the backward pass.
    """
    fast = quick_way(bare, compute_dtype(precision), flat) if quick else None
    if fast is None and again:
        enable_gradient_checkpointing(bare)
    if fast is None and flat:
        attend_by_rows(bare, compute_dtype(precision))
        assert_rows_isolated(bare)
    return Policy(model, forward_of=bare, fast=fast)
