"""An optimizer step of all its micro-batches: forward and backward, again with less where memory runs out, and what it came to."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.optim import Optimizer

from ltune.acting import actor_of
from ltune.data.collate import Step
from ltune.optim.groups import is_fused
from ltune.outcome import Outcome, Part
from ltune.randomness import seed_step

BEFORE = 1  # a step's place when its rows are collected


class Steps:
    """The steps of a run, one after the other.

    Args:
        module: The FineTuner above this file, with its model loaded.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        self.actor = actor_of(module, module.trainer.strategy.root_device)
        self.parts: list[Part] = []  # of the step under way
        self.outcome: Outcome | None = None  # of the last step
        self.unchecked: Outcome | None = None  # the device may still be at it
        self.collected: Step | None = None  # what the last step was computed on

    # -- before the first -----------------------------------------------------------------------------------------------------------

    def settle_memory(self, heaviest: Step, optimizer: Optimizer) -> None:
        """Choose how steps use the memory, and try it on the largest: memory runs out now or not at all."""
        step = self.module.objective.longest(heaviest)
        file = Path(self.module.trainer.default_root_dir) / "memory.json"
        self.module.memory.settle(file, step, lambda: self._rehearse(step, optimizer), self.actor.gather)

    def _rehearse(self, step: Step, optimizer: Optimizer) -> None:
        """What the step needs, its optimizer's moments included, and nothing left of it. In the precision that Lightning has steps
        computed in: where it would not round to 16 bits, more would be kept."""
        missing = 0 if optimizer.state else 2 * sum(p.numel() * p.element_size() for p in trained_by(optimizer))
        moments = torch.empty(missing, dtype=torch.uint8, device=self.actor.device)
        try:
            with self.module.trainer.precision_plugin.train_step_context():
                self._accumulate(step, once=False, alone=True)  # a lighter step may have less in common, and more to compute
        finally:
            del moments
            self.parts = []
            optimizer.zero_grad()

    # -- forward and backward -------------------------------------------------------------------------------------------------------

    def accumulate(self, step: Step, optimizer: Optimizer) -> Tensor:
        """The gradient of all micro-batches. With several ranks the last one's backward is Lightning's, in which the ranks' gradients are
        added up; alone, the loss that is returned has nothing behind it."""
        if self._joined:
            optimizer.zero_grad()
            return self._accumulate(step)
        while True:
            optimizer.zero_grad()
            try:
                return self._accumulate(step)
            except torch.OutOfMemoryError as error:
                problem = str(error)
            optimizer.zero_grad()
            self.module.memory.give_up_some(self.collected or self.module.objective.longest(step), problem)

    @property
    def _joined(self) -> bool:
        """Whether the step's last backward is Lightning's; DDP expects it even of a single rank."""
        trainer = self.module.trainer
        return trainer.world_size > 1 or isinstance(trainer.strategy, DDPStrategy)

    def _accumulate(self, step: Step, *, once: bool = True, alone: bool = False) -> Tensor:
        """The losses are shares of the step's: they are only added up. DDP divides by the ranks, which is undone here. ``alone``: gradients
        stay this rank's."""
        module, device = self.module, self.actor.device
        self.parts, self.collected = [], None
        position = step.position or (0, 0)
        step = self.collected = self.collect(step, position)
        once = once and module.policy.fast is not None
        batches = step.batches(module.memory.most_tokens, once=once, any_order=module.objective.any_order)
        for number, batch in enumerate(batches, 1):
            seed_step(module.seed, *position, number - 1, module.global_rank)  # dropout depends on the place in training alone
            loss, metrics = module.objective.loss(module.policy, batch.tensors(device, non_blocking=True))
            self.parts.append(Part(loss.detach(), batch.rows, metrics))
            if self._joined:
                loss = loss * module.trainer.world_size
                if number == len(batches) and not alone:
                    return loss
            with _without_autocast(device.type):
                module.trainer.strategy.backward(loss, None)
        return self._loss

    @property
    def _loss(self) -> Tensor:
        """Of the parts so far."""
        losses = [part.loss for part in self.parts]
        return torch.stack(losses).sum() if len(losses) > 1 else losses[0]

    def collect(self, step: Step, position: tuple[int, int] = (0, 0)) -> Step:
        """What the objective makes of the step's rows."""
        module = self.module
        self.actor.most_tokens, self.actor.step = module.memory.most_tokens, module.trainer.global_step + 1
        self.actor.seed = lambda number: seed_step(module.seed, *position, number, module.global_rank, BEFORE)
        with torch.no_grad():
            return module.objective.collect(step, self.actor)

    # -- what it came to ------------------------------------------------------------------------------------------------------------

    def end(self, optimizer: Optimizer, clip: float | None) -> None:
        """Right before the optimizer's step: the step's loss, the gradient's norm, and the stop if one is not finite.

        Args:
            optimizer: With the gradients.
            clip: The longest that the gradient may be; None: any length.
        """
        self.check()
        self.module.objective.stepped(self.add_ranks)
        loss, parts, self.parts = self.add_ranks(self._loss), self.parts, []
        norm = torch.nn.utils.clip_grad_norm_([p for p in trained_by(optimizer) if p.grad is not None], clip or float("inf"))
        self.outcome = self.unchecked = Outcome(torch.stack([loss.float(), norm.float()]), parts, self.module.trainer.global_step + 1)
        if norm.is_cuda and is_fused(optimizer):
            self.outcome.guard(optimizer)  # looked at one step later, so that the host does not wait
        else:
            self.check()

    def check(self) -> None:
        """Stop if the last step's loss or gradient is not finite; under 16-mixed the scaler leaves such a gradient's step out itself."""
        outcome, self.unchecked = self.unchecked, None
        if outcome is not None:
            outcome.check(self.module.data.train_rows.place, norm_too=self.module.trainer.precision != "16-mixed")

    def metrics(self) -> Callable[[], dict[str, float]]:
        """The objective's, of the last step. All ranks ask, or none; what is returned waits for the device."""
        assert self.outcome is not None, "a step has been taken"
        return self.outcome.metrics(self.add_ranks)

    def add_ranks(self, values: Tensor) -> Tensor:
        """The sum over the ranks."""
        return self.module.trainer.strategy.reduce(values.clone(), reduce_op="sum")  # which writes over what it is given


def _without_autocast(device: str) -> AbstractContextManager:
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def trained_by(optimizer: Optimizer) -> list[torch.nn.Parameter]:
    """Its parameters."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
