"""Other models beside the one that is trained: references, teachers, reward models. Frozen, in the same precision, on the same device."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ltune.models.adapters import continue_adapter
from ltune.models.load import load_model
from ltune.models.precision import weights_dtype
from ltune.models.quantize import Quantizer
from ltune.objectives.policy import Policy, policy_of


@dataclass(frozen=True)
class Companions:
    """Loads them; what it is given is what they share with the model that is trained."""

    precision: str
    device: torch.device
    attention: str | None
    flat: bool  # rows lie end to end
    fast: bool  # the quick way, where it can serve
    trusted: tuple[str, str | None]  # model, and whose code it may bring along

    def __call__(self, model: str, revision: str | None = None, quantize: Quantizer | None = None, adapter: str | None = None) -> Policy:
        """One of them.

        Args:
            model: Hub id, folder, or "tiny".
            revision: Commit or branch of a hub model.
            quantize: How its weights are stored.
            adapter: Folder of a PEFT LoRA to put on it.
        """
        base = load_model(
            model,
            dtype=weights_dtype(self.precision, frozen=True),
            quantize=quantize,
            attention=self.attention,
            revision=revision,
            trust_remote_code=self.trusted[1] if model == self.trusted[0] else None,
            device=self.device,
        )
        whole: Any = continue_adapter(base, Path(adapter)) if adapter else base
        whole.requires_grad_(False)
        whole.eval()
        return policy_of(whole, base, self.precision, self.flat, self.fast)
