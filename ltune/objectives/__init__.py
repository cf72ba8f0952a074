"""One file, one method. The classes exported here are what YAML may name: ``objective: SFT``."""

from ltune.objectives.base import Actor, Loss, Objective
from ltune.objectives.bco import BCO
from ltune.objectives.cpo import CPO
from ltune.objectives.distill import Distill
from ltune.objectives.dpo import DPO
from ltune.objectives.eaft import EAFT
from ltune.objectives.kto import KTO
from ltune.objectives.metrics import Mean
from ltune.objectives.orpo import ORPO
from ltune.objectives.pretrain import Pretrain
from ltune.objectives.reward import Reward, RewardModel
from ltune.objectives.sft import SFT
from ltune.objectives.simpo import SimPO

__all__ = [
    "BCO", "CPO", "DPO", "EAFT", "KTO", "ORPO", "SFT", "Actor", "Distill", "Loss", "Mean", "Objective", "Pretrain", "Reward", "RewardModel",
    "SimPO",
]  # fmt: skip
