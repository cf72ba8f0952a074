"""Distillation: the student's distribution of each trained token moves towards the teacher's (https://arxiv.org/abs/1503.02531)."""

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltune.data.collate import Batch
from ltune.data.rows import Chat, Row
from ltune.errors import UsageError
from ltune.models.quantize import NF4, Quantizer
from ltune.objectives.base import Beside, Loss
from ltune.objectives.divergence import Divergence, ForwardKL
from ltune.objectives.logits import States, in_parts
from ltune.objectives.policy import Policy
from ltune.objectives.sft import TokenLoss, checked_noise, dynamic

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Distill(TokenLoss):
    """Distillation from a larger model, or from the model itself as it was before training.

    Args:
        teacher: Hub id or folder of a model with the same tokenizer; null: the model itself without its adapter, which keeps training
            close to where it began (with dft and weight 0.1 this is ASFT, https://arxiv.org/abs/2509.23753).
        teacher_revision: Commit or branch of a hub model.
        teacher_adapter: Folder of a PEFT LoRA to put on the teacher.
        teacher_quantize: How the teacher's weights are stored: NF4, FP4, Int8; null: in 16 or 32 bits.
        divergence: ForwardKL, ReverseKL or JSD.
        temperature: Both models' logits are divided by it.
        weight: Of the divergence.
        sft_weight: Of the cross-entropy with the row's own tokens; 0: the teacher alone teaches.
        dft: In that part, weigh each token by its probability, as SFT's dft does.
        neftune_alpha: Noise on the student's embedded tokens in training, as SFT's.
    """

    rows: ClassVar[type[Row]] = Chat

    def __init__(
        self,
        teacher: str | None = None,
        teacher_revision: str | None = None,
        teacher_adapter: str | None = None,
        teacher_quantize: Quantizer | None = NF4(),  # noqa: B008 (stateless; jsonargparse shows it)
        divergence: Divergence = ForwardKL(),  # noqa: B008
        temperature: float = 1.0,
        weight: float = 1.0,
        sft_weight: float = 0.0,
        dft: bool = False,
        neftune_alpha: float = 0.0,
    ) -> None:
        if not temperature > 0:
            raise UsageError(f"Distill temperature: above 0, got {temperature}")
        if not weight > 0 or not sft_weight >= 0:
            raise UsageError(f"Distill: weight above 0 and sft_weight 0 or more, got {weight}, {sft_weight}.\nFor no teacher there is SFT.")
        if dft and not sft_weight:
            raise UsageError("Distill dft: it goes with sft_weight, which is 0.")
        if teacher is None and (teacher_adapter or teacher_revision):
            raise UsageError("Distill teacher: null, and teacher_adapter or teacher_revision is given.\nName the teacher they belong to.")
        self.name, self.revision, self.adapter, self.quantize = teacher, teacher_revision, teacher_adapter, teacher_quantize
        self.divergence, self.temperature, self.weight = divergence, temperature, weight
        self.sft_weight, self.dft, self.neftune_alpha = sft_weight, dft, checked_noise(neftune_alpha)
        self.any_order = not neftune_alpha  # noise is drawn for the tokens in their order
        self.teacher: Policy | None = None

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        """weight temperature^2 D(student, teacher) + sft_weight -log p(token), over the trained tokens of the whole optimizer step.

        The square keeps the gradient's size whatever the temperature.
        """
        teacher = self._taught(policy, batch)
        with policy.noise(batch, self.neftune_alpha if policy.training else 0.0):
            student = States.of(policy, batch)
        width = min(teacher.width, student.width)  # one vocabulary, whose tables may be padded differently

        def compare(read: Tensor, taught: Tensor, targets: Tensor) -> Tensor:
            mine, theirs = student.head(read)[:, :width].float(), teacher.head(taught)[:, :width].float()  # (n, V)
            away = self.divergence.of((mine / self.temperature).log_softmax(-1), (theirs / self.temperature).log_softmax(-1))
            losses = [F.cross_entropy(logits, targets, reduction="none") for logits in (mine, theirs)]
            return torch.stack([away, *losses], 1)  # (n, 3)

        away, losses, teachers = in_parts(compare, width, student.hidden, teacher.hidden, batch.targets).unbind(1)
        taught = dynamic(losses) if self.dft else losses
        loss = self.weight * self.temperature**2 * away + self.sft_weight * taught
        metrics = {"divergence": away, "cross_entropy": losses, "teacher/cross_entropy": teachers}
        return Loss(self.mean(loss, batch), {name: self.mean(values.detach(), batch) for name, values in metrics.items()})

    def _taught(self, policy: Policy, batch: Batch) -> States:
        if self.teacher is not None:
            with torch.no_grad():
                return States.of(self.teacher, batch)
        with policy.without_adapter():
            hidden, head, width = States.of(policy, batch)

        def without(read: Tensor) -> Tensor:
            with policy.without_adapter():
                return head(read)

        return States(hidden, without, width)

    def extend(self, model: nn.Module, load: Callable[..., Policy]) -> None:
        """Load the teacher."""
        if self.name is not None:
            self.teacher = load(self.name, revision=self.revision, quantize=self.quantize, adapter=self.adapter)
        elif not hasattr(model, "disable_adapter"):
            raise UsageError(
                "Distill teacher: null is the model without its adapter, and this one has none.\nName a teacher, for example the model."
            )

    def beside(self) -> list[Beside]:
        """The teacher."""
        return [] if self.name is None else [Beside(self.name, self.revision, self.quantize)]

    def suit(self, tokenizer: "PreTrainedTokenizerBase", load: Callable[..., "PreTrainedTokenizerBase"]) -> None:
        """Refuse a teacher with another tokenizer: its probabilities would be of other tokens."""
        if self.name is None:
            return
        mine, theirs = tokenizer.get_vocab(), load(self.name, revision=self.revision).get_vocab()
        if mine == theirs:
            return
        differ = sorted(mine.items() ^ theirs.items(), key=lambda pair: pair[1])
        raise UsageError(
            f"Distill: the teacher {self.name} has another tokenizer than the model ({len(theirs)} tokens, and {len(mine)} here).\n"
            f"They differ in {len({token for token, _ in differ})} tokens, for example {differ[0][0]!r}: number {theirs.get(differ[0][0])} "
            f"there, {mine.get(differ[0][0])} here.\nChoose a teacher and a student of one family."
        )
