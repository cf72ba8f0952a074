"""One file, one method. The classes exported here are what YAML may name: ``objective: SFT``."""

from ltune.objectives.base import Actor, Loss, Objective
from ltune.objectives.metrics import Mean
from ltune.objectives.pretrain import Pretrain
from ltune.objectives.sft import SFT

__all__ = ["SFT", "Actor", "Loss", "Mean", "Objective", "Pretrain"]
