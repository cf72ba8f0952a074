"""The model that a policy must not move too far from: itself without its adapter, with another adapter, or another model altogether; and
what the objectives have in common that compare the policy with one row by row."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha1
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ltune.data.collate import Batch, Step
from ltune.data.rows import IGNORE, Sequence
from ltune.errors import UsageError
from ltune.models.quantize import Quantizer
from ltune.objectives.base import Actor, Beside, Objective
from ltune.objectives.policy import Policy

KEPT = "reference_losses"  # the extra that cached losses travel as


class Reference(ABC):
    """Base of the references.

    With ``cache``, a row's token losses are computed once, the row alone, and kept in the main memory (4 bytes a trained token). Alone they
    do not depend on the rows beside it, so that a resumed run, which computes them again, finds the same numbers.

    Args:
        cache: Compute the log-probabilities once instead of in each epoch.
    """

    def __init__(self, cache: bool = False) -> None:
        self.cache = cache
        self._kept: dict[bytes, list[np.ndarray]] = {}  # by the row's contents, of each of its sequences

    def extend(self, model: nn.Module, load: Callable[..., Policy]) -> None:  # noqa: B027 (nothing, unless told otherwise)
        """Load what it needs beside the model; see ``Objective.extend``."""

    def beside(self) -> list[Beside]:
        """The models that it loads; see ``Objective.beside``."""
        return []

    @abstractmethod
    def compute(self, policy: Policy, batch: Batch, temperature: float = 1.0) -> Tensor:
        """Minus the log-probability of each trained token, logits being divided by ``temperature``: (N,), without gradient."""

    def token_losses(self, policy: Policy, batch: Batch) -> Tensor:
        """The same, from the cache where there is one."""
        return batch.extra(KEPT) if self.cache else self.compute(policy, batch)

    def collect(self, step: Step, actor: Actor) -> Step:
        """The step with what is cached of its rows."""
        if not self.cache:
            return step
        sequences = {row: self._with_losses(row, parts, step, actor) for row, parts in step.sequences.items()}
        return replace(step, sequences=sequences)

    def _with_losses(self, row: int, parts: tuple[Sequence, ...], step: Step, actor: Actor) -> tuple[Sequence, ...]:
        key = sha1(b"|".join(np.asarray(part.input_ids).tobytes() for part in parts), usedforsecurity=False).digest()
        if key not in self._kept:
            alone = replace(step, micro_batches=((row,),), sequences={row: parts})
            (batch,) = alone.batches()
            losses = self.compute(actor.policy, batch.tensors(actor.device)).float().cpu().numpy()
            ends = np.cumsum([int(np.count_nonzero(np.asarray(part.labels) != IGNORE)) for part in parts])
            self._kept[key] = np.split(losses, ends[:-1])
        return tuple(replace(part, extras={**part.extras, KEPT: one}) for part, one in zip(parts, self._kept[key], strict=True))


class AdapterOff(Reference):
    """The model that is trained, without its adapter.

    Args:
        cache: Compute the log-probabilities once instead of in each epoch.
    """

    def extend(self, model: nn.Module, load: Callable[..., Policy]) -> None:
        """Refuses a model without an adapter."""
        if not hasattr(model, "disable_adapter"):
            raise UsageError(
                "objective.reference: AdapterOff takes the model without its adapter, and the whole model is trained.\n"
                "Use  reference: {class_path: OtherModel}  or  model.adapter: LoRA"
            )

    def compute(self, policy: Policy, batch: Batch, temperature: float = 1.0) -> Tensor:
        """One more pass, with the low-rank parts left out."""
        with policy.without_adapter():
            return policy.token_losses(batch, temperature=temperature)


class OtherAdapter(Reference):
    """The model that is trained, with another adapter: for example the one that training starts from.

    Args:
        folder: Of a saved PEFT LoRA.
        cache: Compute the log-probabilities once instead of in each epoch.
    """

    NAME = "reference"

    def __init__(self, folder: str, cache: bool = False) -> None:
        super().__init__(cache)
        self.folder = folder

    def extend(self, model: Any, load: Callable[..., Policy]) -> None:
        """Puts the adapter beside the trained one, frozen."""
        if not hasattr(model, "load_adapter") or not hasattr(model, "disable_adapter"):
            raise UsageError("objective.reference: OtherAdapter needs an adapter to stand beside.\nSet  model.adapter: LoRA")
        if not (Path(self.folder) / "adapter_config.json").is_file():
            raise UsageError(f"objective.reference: {self.folder} is no PEFT folder: it has no adapter_config.json.")
        try:
            model.load_adapter(self.folder, adapter_name=self.NAME, is_trainable=False)
        except (ValueError, RuntimeError) as error:
            raise UsageError(f"objective.reference: {self.folder} does not fit this model.\n{str(error).splitlines()[0][:300]}") from error

    def compute(self, policy: Policy, batch: Batch, temperature: float = 1.0) -> Tensor:
        """One more pass, with the other low-rank parts."""
        with policy.with_adapter(self.NAME):
            return policy.token_losses(batch, temperature=temperature)


class OtherModel(Reference):
    """Another model, held beside the one that is trained; what training the whole model needs.

    Args:
        model: Hub id, folder, or "tiny".
        revision: Commit or branch of a hub model.
        quantize: How its weights are stored: NF4, FP4, Int8; null: in 16 or 32 bits.
        adapter: Folder of a PEFT LoRA to put on it.
        cache: Compute the log-probabilities once instead of in each epoch.
    """

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        quantize: Quantizer | None = None,
        adapter: str | None = None,
        cache: bool = False,
    ) -> None:
        super().__init__(cache)
        self.model, self.revision, self.quantize, self.adapter = model, revision, quantize, adapter
        self.policy: Policy | None = None

    def extend(self, model: nn.Module, load: Callable[..., Policy]) -> None:
        """Loads it."""
        self.policy = load(self.model, revision=self.revision, quantize=self.quantize, adapter=self.adapter)

    def beside(self) -> list[Beside]:
        """It."""
        return [Beside(self.model, self.revision, self.quantize)]

    def compute(self, policy: Policy, batch: Batch, temperature: float = 1.0) -> Tensor:
        """A pass of the other model."""
        assert self.policy is not None, "extend comes first"
        with torch.no_grad():
            return self.policy.token_losses(batch, temperature=temperature)


class Referenced(Objective):
    """Base of DPO, KTO, BCO."""

    reference: Reference

    def extend(self, model: nn.Module, load: Callable[..., Policy]) -> None:
        """The reference."""
        self.reference.extend(model, load)

    def beside(self) -> list[Beside]:
        """What the reference loads."""
        return self.reference.beside()

    def collect(self, step: Step, actor: Actor) -> Step:
        """With the reference's log-probabilities, where they are cached."""
        return self.reference.collect(step, actor)
