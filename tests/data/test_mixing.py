"""Mixes take the rows they say, the same rows as `datasets` takes."""

from collections import Counter

import datasets
import pytest

from ltune.data.mixing import Concatenate, Interleave
from ltune.errors import UsageError

STOPS = {"under": "first_exhausted", "over": "all_exhausted", "once": "all_exhausted_without_replacement"}


def positions(mix, sizes, weights=None, seed=7):
    return mix.positions(sizes, weights or [1.0] * len(sizes), seed).tolist()


def reference(sizes, **options):
    begins = [sum(sizes[:number]) for number in range(len(sizes))]
    sets = [datasets.Dataset.from_dict({"row": range(begin, begin + size)}) for begin, size in zip(begins, sizes, strict=True)]
    return datasets.interleave_datasets(sets, **options)["row"]


def test_one_after_the_other():
    assert positions(Concatenate(), [2, 3]) == [0, 1, 2, 3, 4]


def test_weights_repeat_rows_or_take_a_share_of_them():
    assert positions(Concatenate(), [2, 3], [2.0, 1.0]) == [0, 1, 0, 1, 2, 3, 4]
    half = positions(Concatenate(), [100, 3], [0.5, 1.0])
    assert len(set(half)) == 53
    assert half == sorted(half)
    assert half == positions(Concatenate(), [100, 3], [0.5, 1.0])
    assert half != positions(Concatenate(), [100, 3], [0.5, 1.0], seed=8)
    assert half == positions(Concatenate(seed=7), [100, 3], [0.5, 1.0], seed=8)
    assert sorted(Counter(positions(Concatenate(), [4], [2.5])).values()) == [2, 2, 3, 3]


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("probabilities", [None, [0.6, 0.3, 0.1], [0.05, 0.05, 0.9]])
@pytest.mark.parametrize("sizes", [[3, 4, 5], [700, 20, 1300], [1, 1, 1], [5, 5, 2]])
def test_interleaved_as_datasets_does(stop, probabilities, sizes):
    expected = reference(sizes, probabilities=probabilities, seed=7, stopping_strategy=STOPS[stop])
    assert positions(Interleave(stop, probabilities), sizes) == list(expected)


def test_weights_are_probabilities_where_rows_are_interleaved():
    assert positions(Interleave("over"), [30, 40], [3.0, 1.0]) == positions(Interleave("over", [0.75, 0.25]), [30, 40])


def test_the_seed_is_the_mixs_own_or_the_runs():
    drawn = positions(Interleave("over", [0.5, 0.5]), [30, 40], seed=1)
    assert drawn != positions(Interleave("over", [0.5, 0.5]), [30, 40], seed=2)
    assert drawn == positions(Interleave("over", [0.5, 0.5], seed=1), [30, 40], seed=2)


def test_probabilities_that_cannot_be_are_refused():
    for probabilities in ([0.5, 0.6], [1.0, 0.0], [-0.5, 1.5], []):
        with pytest.raises(UsageError, match="above 0 and add up to 1"):
            Interleave("under", probabilities)
    with pytest.raises(UsageError, match="2 probabilities for 3 data sets"):
        positions(Interleave("under", [0.5, 0.5]), [1, 2, 3])
    with pytest.raises(UsageError, match="keep one"):
        positions(Interleave("under", [0.5, 0.5]), [1, 2], [1.0, 2.0])
