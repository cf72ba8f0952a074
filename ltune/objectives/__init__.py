"""One file, one method. The classes exported here are what YAML may name: ``objective: SFT``."""

from ltune.objectives.base import Actor, Loss, Objective
from ltune.objectives.grpo import GRPO
from ltune.objectives.metrics import Mean
from ltune.objectives.ppo import PPO
from ltune.objectives.pretrain import Pretrain
from ltune.objectives.rloo import RLOO
from ltune.objectives.sft import SFT

__all__ = ["GRPO", "PPO", "RLOO", "SFT", "Actor", "Loss", "Mean", "Objective", "Pretrain"]
