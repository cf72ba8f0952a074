"""Whose text each token is, and what it weighs in the loss.

A token's role travels in the upper bits of its id until the row is labelled, so that whatever shortens a row keeps them together.
"""

import math

import numpy as np

from ltune.errors import UsageError

# template: what the chat template writes around the texts, and the tools. assistant: answers with their end token, as they are trained
ROLES = ("template", "system", "user", "tool", "assistant")
ASSISTANT = ROLES.index("assistant")
SHIFT = 24  # bits; no vocabulary has 16 million tokens
MASK = (1 << SHIFT) - 1


def with_roles(ids: np.ndarray, roles: np.ndarray) -> np.ndarray:
    """(tokens,) int32 ids with (tokens,) roles, numbers in ROLES, above them."""
    return ids | (roles.astype(np.int32) << SHIFT)


def apart(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ids, and the roles; 0 where none were put."""
    return ids & MASK, ids >> SHIFT


def weight_table(weights: dict[str, float], train_on: str) -> np.ndarray:
    """(roles,) float32: what a token of each role weighs; 1 where nothing is said.

    Args:
        weights: By role.
        train_on: data.train_on; with any but "all" only answers are trained.

    Raises:
        UsageError: An unknown role, no weight, or one for tokens that are not trained.
    """
    for role, weight in weights.items():
        if role not in ROLES:
            raise UsageError(f"data.weights: there is no role {role}.\nThere are: {', '.join(ROLES)}.")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight) or weight < 0:
            raise UsageError(f"data.weights: {role} must have a number of 0 or more, got {weight!r}.")
        if weight and role != "assistant" and train_on != "all":
            raise UsageError(
                f"data.weights gives {role} {weight:g}, but data.train_on: {train_on} trains answers only.\nSet  data.train_on: all"
            )
    return np.array([weights.get(role, 1.0) for role in ROLES], np.float32)
