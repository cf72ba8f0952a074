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
    number = int(words[2]) << 32 | int(words[3])
    torch.default_generator.manual_seed(number)  # torch.manual_seed writes a traceback for every back end that is not there: 2 ms
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(number)
