"""What Lightning does in each step for somebody who watches or waits, made cheap for when nobody does."""

from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.profilers import PassThroughProfiler
from torch import Tensor

NOTHING: nullcontext[None] = nullcontext()


class Unprofiled(PassThroughProfiler):
    """Times nothing. Lightning's own that does so still makes a generator for each hook of each callback."""

    def profile(self, action_name: str) -> AbstractContextManager:  # type: ignore[override]
        """The same one each time."""
        return NOTHING


class Unhooked:
    """A callback or module that Lightning passes over at those of a step's hooks which its class does not define, instead of entering it
    there to do nothing: it asks whether a hook can be called."""

    on_train_batch_start: Any = None
    on_before_zero_grad: Any = None
    on_before_backward: Any = None
    on_after_backward: Any = None
    on_before_optimizer_step: Any = None
    on_train_batch_end: Any = None


class Module(Unhooked, LightningModule):
    """A LightningModule with nothing to do where there is nothing to do."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Lightning asks in each step whether training_step takes a batch's number; inspect has the answer here."""
        super().__init_subclass__(**options)
        step = cls.__dict__.get("training_step")
        if step is not None:
            step.__signature__ = signature(step)

    def _apply_batch_transfer_handler(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        """Nothing: ``steps.py`` brings each micro-batch to the device when its turn comes. Lightning would look four times whether the
        data or the model has a way of its own."""
        return batch

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Of a loss with something behind it; where ``steps.py`` has been through all micro-batches, Lightning comes with one that has
        nothing."""
        if loss.requires_grad:
            loss.backward(*args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        """torch looks whether it is a parameter, a module or a buffer; Lightning sets the name of the hook under way 50 times a step."""
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)
