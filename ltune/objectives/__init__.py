"""One file, one method. The classes exported here are what YAML may name: ``objective: SFT``."""

from ltune.objectives.base import Loss, Objective
from ltune.objectives.pretrain import Pretrain
from ltune.objectives.sft import SFT

__all__ = ["SFT", "Loss", "Objective", "Pretrain"]
