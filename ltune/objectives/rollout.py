"""What came of letting the policy answer: sequences, rewards, and what is known of each token. Tensors only, on the CPU.

All ranks hold the answers of all ranks: they are few bytes beside a model, any rank can save and restore them, and what is computed over
all of them is the same everywhere.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltune.data.collate import Step
from ltune.data.rows import IGNORE, Sequence
from ltune.objectives.advantages import sums


@dataclass
class Rollout:
    """S answers, those to the same prompt side by side; N tokens in all answers, T with prompts; F reward functions."""

    ids: Tensor  # (T,) int32: each prompt with its answer, end to end
    lengths: Tensor  # (S,) int64: tokens of prompt and answer
    answered: Tensor  # (S,) int64: tokens of the answer, at least one
    rows: Tensor  # (S,) int64: the prompt's row
    ended: Tensor  # (S,) bool: whether the answer came to its end
    scores: Tensor  # (F, S) float32: what each reward function gave; NaN where it had nothing to say
    rewards: Tensor  # (S,) float32: their weighted sum
    of_answers: dict[str, Tensor] = field(default_factory=dict)  # (S,) float32: advantages ...
    of_tokens: dict[str, Tensor] = field(default_factory=dict)  # (N,) float32: log-probabilities, values ...

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def begins(self) -> tuple[Tensor, Tensor]:
        """(S + 1,) each: where sequences begin in ``ids``, and answers in what is known of tokens."""
        zero = torch.zeros(1, dtype=torch.int64)
        return torch.cat([zero, self.lengths.cumsum(0)]), torch.cat([zero, self.answered.cumsum(0)])

    def sequence(self, number: int) -> Sequence:
        """One, with its part of the extras; its answer is what is trained."""
        starts, answers = self.begins
        ids = self.ids[starts[number] : starts[number + 1]].numpy()
        labels = np.full(len(ids), IGNORE, np.int32)
        labels[len(ids) - int(self.answered[number]) :] = ids[len(ids) - int(self.answered[number]) :]
        tokens = slice(int(answers[number]), int(answers[number + 1]))
        extras = {name: values[number].numpy() for name, values in self.of_answers.items()}
        return Sequence(ids, labels, extras | {name: values[tokens].numpy() for name, values in self.of_tokens.items()})

    def kl(self) -> Tensor:
        """(S,): log p - log p_ref, added up over each answer."""
        return sums(self.of_tokens["old"] - self.of_tokens["reference"], self.answered)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def of(cls, state: dict[str, Any]) -> "Rollout":
        """Of a checkpoint."""
        return cls(**state)

    @classmethod
    def joined(cls, parts: Items["Rollout"]) -> "Rollout":
        """One after the other."""
        states = [part.state() for part in parts]
        return cls(**{name: _joined([state[name] for state in states]) for name in states[0]})


def _joined(values: list[Any]) -> Any:
    if isinstance(values[0], dict):
        return {name: _joined([value[name] for value in values]) for name in values[0]}
    return torch.cat(values, -1)


def made_of(prompts: Items[Items[int]], answers: Items[Items[int]], rows: Items[int], stop_ids: set[int], functions: int) -> Rollout:
    """A rollout not yet scored.

    Args:
        prompts: Ids, (S).
        answers: Ids, each with what ended it, none empty.
        rows: Of the prompts.
        stop_ids: What ends an answer.
        functions: F.
    """
    ids = [np.asarray([*prompt, *answer], np.int32) for prompt, answer in zip(prompts, answers, strict=True)]
    count = len(ids)
    return Rollout(
        ids=torch.from_numpy(np.concatenate([*ids, np.empty(0, np.int32)])),
        lengths=torch.tensor([len(one) for one in ids], dtype=torch.int64),
        answered=torch.tensor([len(answer) for answer in answers], dtype=torch.int64),
        rows=torch.tensor(list(rows), dtype=torch.int64),
        ended=torch.tensor([answer[-1] in stop_ids for answer in answers], dtype=torch.bool),
        scores=torch.full((functions, count), torch.nan),
        rewards=torch.full((count,), torch.nan),
    )


def step_of(rollout: Rollout, numbers: Items[int], like: Step, size: int, window: tuple[float, int]) -> Step:
    """Some of the answers as a step's rows, this rank's.

    Args:
        rollout: All answers.
        numbers: Which of them.
        like: The step of prompts that they take the place of.
        size: Answers in a micro-batch.
        window: Trained tokens and answers in the whole step, of all ranks.
    """
    return Step(
        micro_batches=tuple(tuple(numbers[begin : begin + size]) for begin in range(0, len(numbers), size)),
        sequences={number: (rollout.sequence(number),) for number in numbers},
        window_tokens=window[0],
        window_rows=window[1],
        position=like.position,
        flat=like.flat,
        pad_id=like.pad_id,
        origins={number: int(rollout.rows[number]) for number in numbers},
    )
