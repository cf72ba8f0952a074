"""Randomness as a pure function of where training stands.

Dropout and everything else that draws numbers is seeded anew before each micro-batch, so a resumed run needs no saved generator states and
validation, logging or a restart in between cannot change what comes next.
"""

import random

import numpy as np
import torch


def seed_step(seed: int, *place: int) -> None:
    """Seed Python, NumPy, torch and CUDA from ``seed`` and a place such as (epoch, window, micro-batch, rank)."""
    words = np.random.SeedSequence([seed, *place]).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]) << 32 | int(words[3]))  # CUDA's generators too
