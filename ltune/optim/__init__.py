"""Parameter groups and learning-rate schedules."""

from ltune.optim.schedules import Constant, Cosine, Linear, Schedule

__all__ = ["Constant", "Cosine", "Linear", "Schedule"]
