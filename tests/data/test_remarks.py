"""What a data report has to say, and where it keeps quiet."""

import numpy as np
import pytest

from ltune.data.remarks import remarks, rows, share
from ltune.data.report import Tally, data_report
from ltune.data.rows import IGNORE


def counted(rows=100, length=10, trained=5):
    tally = Tally()
    for number in range(rows):
        ids = np.arange(number, number + length, dtype=np.int32)
        tally.add(ids, trained, np.where(np.arange(length) < length - trained, IGNORE, ids))
    return tally


def said(*tallies):
    return remarks(data_report([(f"set {number}", tally) for number, tally in enumerate(tallies)], []))


def test_nothing_about_rows_as_they_should_be():
    tally = counted()
    for _ in range(10):  # not more than a tenth
        tally.note(True, {"<|end|>": 1}, place="a:1")
    for number in range(11):
        tally.drop("no trained token", f"b:{number}")
    assert said(tally) == []


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda tally: [tally.note(True, {}, place=f"a:{n}") for n in range(11)],
         "11 of 100 rows (11.0%) are cut at data.max_length; raise it, or choose another data.truncation"),
        (lambda tally: [tally.drop("too long", f"a:{n}") for n in range(12)], "12 of 112 rows (10.7%) are dropped: too long"),
        (lambda tally: tally.note(True, {}, end_cut=True, place="a:3"),
         "1 row lost the end token of an answer: the model learns to go on (first: a:3)"),
        (lambda tally: tally.note(False, {}, empty_answer=True),
         "1 row with an empty answer: the model learns to say nothing"),
        (lambda tally: [tally.skip("not JSON", f"a:{n}") for n in (4, 9)], "2 rows could not be read and are skipped (first: a:4)"),
        (lambda tally: [tally.add(np.arange(10, dtype=np.int32), 5) for _ in range(6)],
         "6 of 106 rows (5.7%) are the same, token by token, as an earlier one"),
    ],
)  # fmt: skip
def test_a_line_for_each(spoil, line):
    tally = counted()
    spoil(tally)
    assert said(tally) == [line]


def test_hardly_anything_trained():
    assert said(counted(length=101, trained=1)) == ["100 of 10,100 tokens (1.0%) are trained; is the answer in the right column?"]
    assert said(counted(length=100, trained=1)) == []


def test_all_answers_the_same():
    tally = Tally()
    for number in range(3):
        tally.add(np.array([number, 9], np.int32), 1, np.array([IGNORE, 9], np.int32))
    assert said(tally) == ["all 3 answers are the same; is the answer in the right column?"]


def test_of_several_data_sets_the_one_is_named():
    spoiled = counted()
    spoiled.note(False, {}, empty_answer=True, place="b:1")
    lines = said(counted(), spoiled)
    assert lines[0] == "set 1: 1 row with an empty answer: the model learns to say nothing (first: b:1)"
    assert lines[1:] == ["100 of 200 rows (50.0%) are the same, token by token, as an earlier one"]


def test_numbers_in_words():
    assert [rows(1), rows(0), rows(1234)] == ["1 row", "0 rows", "1,234 rows"]
    assert [share(0, 0), share(0, 5), share(1, 5), share(1, 10_000)] == ["0.0%", "0.0%", "20.0%", "less than 0.1%"]
