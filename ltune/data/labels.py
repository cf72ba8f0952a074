"""Which tokens of a row are trained, and what each of them weighs."""

from dataclasses import replace
from typing import Literal

import numpy as np

from ltune.data.pieces import Pieces
from ltune.data.roles import ASSISTANT, apart
from ltune.data.rows import IGNORE, Sequence

TrainOn = Literal["assistant", "last", "all"]


def label(pieces: Pieces, train_on: TrainOn, weights: np.ndarray | None = None) -> Sequence | None:
    """None if no token would be trained. ``weights`` of the roles that stand above the ids; a token that weighs nothing is not trained."""
    if weights is None:
        return _trained(pieces, train_on)
    ids, roles = apart(pieces.ids)
    roles[np.repeat(pieces.trained, pieces.lengths)] = ASSISTANT
    sequence = _trained(replace(pieces, ids=ids), train_on)
    if sequence is None:
        return None
    labels = np.where(weights[roles] > 0, sequence.labels, IGNORE)
    weight = weights[roles][labels != IGNORE]
    extras = {"weight": weight, "weights": weight.sum()}  # of each trained token, and of all
    return replace(sequence, labels=labels, extras=extras) if len(weight) else None


def _trained(pieces: Pieces, train_on: TrainOn) -> Sequence | None:
    if train_on == "all":
        return sequence_of(pieces.ids, pieces.ids.copy()) if len(pieces.ids) > 1 else None
    labels = pieces.ids.copy()
    first = 0  # piece that is trained
    if train_on == "last":
        first = len(pieces.without_tail().trained)
        while first and pieces.trained[first - 1]:
            first -= 1
    begin, count = 0, 0
    for number, (length, trained) in enumerate(zip(pieces.lengths, pieces.trained, strict=True)):
        end = begin + length
        if trained and number >= first:
            count += length if begin else length - 1  # nothing stands before the first token
        else:
            labels[begin:end] = IGNORE
        begin = end
    return sequence_of(pieces.ids, labels) if count > 0 else None


def sequence_of(input_ids: np.ndarray, labels: np.ndarray) -> Sequence:
    """The first token is never trained: nothing stands before it."""
    labels[0] = IGNORE
    return Sequence(input_ids, labels)
