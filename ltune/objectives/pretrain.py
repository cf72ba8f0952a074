"""Continued pre-training: next-token cross-entropy on every token of plain text."""

from ltune.data.rows import Text
from ltune.objectives.sft import SFT


class Pretrain(SFT):
    """Next-token prediction on plain text: the formula of SFT, with every token trained."""

    rows = Text
