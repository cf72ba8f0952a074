"""What every objective is: a function from the policy and a batch to a loss.

It refuses to know the optimizer, the trainer and the devices.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ltune.data.collate import Batch, Step
from ltune.data.rows import Row
from ltune.generation.answers import Answers
from ltune.models.quantize import Quantizer
from ltune.objectives.metrics import Metrics
from ltune.objectives.policy import Policy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Loss(NamedTuple):
    """A micro-batch's share of the step's loss, and what else is worth logging. Every batch gives metrics of the same names."""

    loss: Tensor  # (): adding it up over the micro-batches and ranks of an optimizer step gives the step's loss
    metrics: Metrics  # shares as well, (); of a Mean, the sums are added up and divided when it is logged


class Beside(NamedTuple):
    """A frozen model beside the one that is trained."""

    model: str
    revision: str | None
    quantize: Quantizer | None


@dataclass
class Actor:
    """What an objective may use before a step: the policy, where it computes and in which portions."""

    policy: Policy
    device: torch.device
    most_tokens: int | None = None  # of a batch; None: the step's micro-batches
    step: int = 1  # the number of the optimizer step to come
    run_seed: int = 0
    rank: int = 0
    world_size: int = 1
    folder: Path | str | None = None  # of the run, where something is to be written there
    answers: Callable[..., Answers] | None = None  # (sampling, at_once, keep_stop): what answers prompts
    decode: Callable[[Sequence[int]], str] = str  # ids to text, without control tokens
    gather: Callable[[Any], list[Any]] = lambda value: [value]  # of all ranks, in their order
    seed: Callable[[int], None] = lambda number: None  # makes what batch so-and-so draws (dropout) depend on its place in training alone

    def batches(self, step: Step) -> Iterator[Batch]:
        """The step's rows, as they fit into the memory, on the device."""
        for number, batch in enumerate(step.batches(self.most_tokens)):
            self.seed(number)
            yield batch.tensors(self.device, non_blocking=True)

    def wait(self) -> None:
        """Until the device has done what it was asked."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Objective(ABC):
    """Base of the methods; the constructor holds the knobs, the call the data."""

    rows: ClassVar[type[Row]]  # what the data module must give
    repeats: int = 1  # optimizer steps that a window's rows serve, one after the other
    any_order: bool = True  # whether rows of a micro-batch may be put side by side by how they begin; else as they are where not trained

    @abstractmethod
    def loss(self, policy: Policy, batch: Batch) -> Loss:
        """The loss of one micro-batch."""

    def counted(self, batch: Batch) -> tuple[float, float]:
        """What the loss is an average over: how many of them the batch has, and the whole window. Rows, unless told otherwise."""
        return len(batch.rows), batch.window_rows

    def derived(self, loss: Tensor) -> dict[str, Tensor]:
        """What validation tells besides the loss that is computed from it."""
        return {}

    # -- around the steps -----------------------------------------------------------------------------------------------------------

    def suit(self, tokenizer: "PreTrainedTokenizerBase", load: Callable[..., "PreTrainedTokenizerBase"]) -> None:  # noqa: B027
        """See that it goes with the model's tokenizer, before anything else is read.

        Args:
            tokenizer: The model's.
            load: ``load(model, revision=None)``: another model's.

        Raises:
            UsageError: It does not.
        """

    def extend(self, model: nn.Module, load: Callable[..., Policy]) -> None:  # noqa: B027 (nothing, unless told otherwise)
        """Put beside the model, adapter and all, what is trained with it (heads), and load what is not (reference, teacher, reward model).

        Args:
            model: What is put into it as a submodule is trained, saved in checkpoints and restored.
            load: ``load(model, revision=None, quantize=None, adapter=None)``: another model as a frozen policy, on the same device;
                ``adapter`` is the folder of a PEFT LoRA to put on it.
        """

    def beside(self) -> list["Beside"]:
        """The models that ``extend`` loads, so that it can be told beforehand how much memory they take."""
        return []

    def collect(self, step: Step, actor: Actor) -> Step:
        """What the loss is computed on in place of the step's rows as they are read: with extras, or other sequences. Called before each
        step's first micro-batch, and before each batch of validation, without gradient."""
        return step

    def longest(self, step: Step) -> Step:
        """The most that ``collect`` may make of a step's rows; memory is tried on it before the first step."""
        return step

    def stepped(self, add_ranks: Callable[[Tensor], Tensor]) -> None:  # noqa: B027
        """After the last micro-batch of a step, on all ranks, when nothing stands in the way of the optimizer's step.

        Args:
            add_ranks: Adds up a tensor over the ranks.
        """

    def save(self, folder: Path) -> None:  # noqa: B027
        """Write what ``extend`` put beside the model into the folder of the result."""

    def state_dict(self) -> dict[str, Any]:
        """What it carries from step to step: tensors, numbers and texts, for the checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Of a checkpoint."""
