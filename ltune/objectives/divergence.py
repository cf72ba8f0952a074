"""How far the student's distribution of the next token is from the teacher's, at each position."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ltune.errors import UsageError


class Divergence(ABC):
    """Of two distributions over V tokens."""

    @abstractmethod
    def of(self, student: Tensor, teacher: Tensor) -> Tensor:
        """(n, V) log-probabilities of either to (n,)."""


class ForwardKL(Divergence):
    """KL(teacher | student) (https://arxiv.org/abs/1503.02531): the student covers all that the teacher holds possible."""

    def of(self, student: Tensor, teacher: Tensor) -> Tensor:
        """sum_v p_teacher (log p_teacher - log p_student)."""
        return kl(teacher, student)


class ReverseKL(Divergence):
    """KL(student | teacher) (https://arxiv.org/abs/2306.08543): the student keeps to what the teacher holds likely."""

    def of(self, student: Tensor, teacher: Tensor) -> Tensor:
        """sum_v p_student (log p_student - log p_teacher)."""
        return kl(student, teacher)


class JSD(Divergence):
    """The generalised Jensen-Shannon divergence (https://arxiv.org/abs/2306.13649): between the two, and bounded.

    Args:
        beta: Share of the teacher in the mixture, between 0 and 1; near 0 its gradient is the forward KL's, near 1 the reverse KL's.
    """

    def __init__(self, beta: float = 0.5) -> None:
        if not 0 < beta < 1:
            raise UsageError(f"JSD beta: between 0 and 1, got {beta}.\nThe ends are classes of their own: ForwardKL (0) and ReverseKL (1).")
        self.beta = beta

    def of(self, student: Tensor, teacher: Tensor) -> Tensor:
        """beta KL(teacher | mixture) + (1 - beta) KL(student | mixture), mixture = beta p_teacher + (1 - beta) p_student."""
        mixture = torch.logaddexp(teacher + math.log(self.beta), student + math.log1p(-self.beta))
        return self.beta * kl(teacher, mixture) + (1 - self.beta) * kl(student, mixture)


def kl(first: Tensor, second: Tensor) -> Tensor:
    """KL(first | second) of log-probabilities, (n, V) to (n,). A token that ``first`` excludes (-inf) adds nothing."""
    difference = torch.where(first == -math.inf, 0.0, first - second)
    return (first.exp() * difference).sum(-1)
