"""A trained reward model as a reward function: it reads the tokens themselves, prompt and answer."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from ltune.data.collate import Step
from ltune.data.rows import IGNORE
from ltune.data.rows import Sequence as Tokens
from ltune.models.quantize import Quantizer
from ltune.objectives.base import Beside
from ltune.objectives.policy import Policy
from ltune.objectives.reward import RewardModel
from ltune.objectives.rewards import Answer, RewardFunction


class ModelReward(RewardFunction):
    """What a run of ``objective: Reward`` left. Its model has the tokenizer and the template of the one in training.

    Args:
        folder: Its result: adapter and head, or the whole model and the head.
        model: The base model of an adapter; null: the one that the adapter names.
        quantize: How its weights are stored: NF4, FP4, Int8; null: in 16 or 32 bits.
        at_once: Answers that it reads together.
        weight: What it counts in the sum.
        name: In the metrics; null: the class's.
    """

    def __init__(
        self,
        folder: str,
        model: str | None = None,
        quantize: Quantizer | None = None,
        at_once: int = 16,
        weight: float = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(weight, name)
        self.model, self.at_once = RewardModel(folder, model, quantize), at_once
        self.device: torch.device

    def extend(self, load: Callable[..., Policy], device: torch.device) -> None:
        """Loads it."""
        self.device = device
        self.model.load(load, device)

    def beside(self) -> list[Beside]:
        """It."""
        return [self.model.beside()]

    def scores(self, answers: Sequence[Answer]) -> list[float]:
        """Any number; higher is better."""
        numbers = range(len(answers))
        flat = self.model.policy.fast is not None  # padded is right for every model
        step = Step(
            micro_batches=tuple(tuple(numbers[begin : begin + self.at_once]) for begin in range(0, len(answers), self.at_once)),
            sequences={number: (_tokens(answers[number]),) for number in numbers},
            window_tokens=sum(len(answer.ids) for answer in answers),
            window_rows=len(answers),
            position=None,
            flat=flat,
            pad_id=0,
        )
        return [score for batch in step.batches() for score in self.model.scores(batch.tensors(self.device)).tolist()]


def _tokens(answer: Answer) -> Tokens:
    ids = np.array([*answer.prompt_ids, *answer.ids], np.int32)
    return Tokens(ids, np.concatenate([np.full(len(answer.prompt_ids), IGNORE, np.int32), ids[len(answer.prompt_ids) :]]))
