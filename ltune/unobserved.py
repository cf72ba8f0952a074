"""What Lightning does in each step for somebody who watches or waits, made cheap for when nobody does."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.profilers import PassThroughProfiler
from torch import Tensor

NOTHING: nullcontext[None] = nullcontext()


class Unprofiled(PassThroughProfiler):
    """Times nothing. Lightning's own that does so still makes a generator for each hook of each callback."""

    def profile(self, action_name: str) -> AbstractContextManager:  # type: ignore[override]
        """The same one each time."""
        return NOTHING


class Module(LightningModule):
    """A LightningModule with nothing to do where there is nothing to do."""

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
