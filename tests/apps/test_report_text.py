"""A data report in lines."""

import numpy as np

from ltune.apps.report_text import report_lines
from ltune.data.report import Tally, data_report


def filled():
    """A report of 40 rows that has something to say on every line, and 3 rows of another data set."""
    tally, other = Tally(), Tally()
    for number in range(40):
        ids = np.arange(1 + number, dtype=np.int32)
        tally.add(ids, 1, ids)
        tally.note(number < 3, {"<|end|>": 2} if number == 4 else {}, empty_answer=number == 5, place=f"a.jsonl:{number + 1}")
    tally.note(True, {"<think>": 1}, end_cut=1, split=True, place="a.jsonl:99")
    for number in range(25):
        tally.drop("longer than 64 tokens", f"b.jsonl:{number + 1}")
    tally.skip("a message has no content", "c.jsonl:7")
    for _ in range(3):
        other.add(np.zeros(1500, np.int32), 30)
    return data_report([("a", tally), ("other", other)], [])


def test_every_line():
    lines = report_lines(filled(), train=41, held_out=2, places=2)
    assert lines == [
        "rows            41 to train on, 2 held out for validation",
        "tokens          5,320, of which 130 are trained (2.4%)",
        "tokens a row    median 22, longest 1,500",
        "      1 to   128 ████████████████████████████████████████ 40",
        *(f"  {low:>5,} to {low + 127:>5,}  0" for low in range(129, 1400, 128)),
        "  1,409 to 1,536 ███ 3",
        "truncated       4 rows (9.3%): a.jsonl:1, 2 and 2 more",
        "split           1 row (2.3%): a.jsonl:99",
        "dropped         25 rows, longer than 64 tokens: b.jsonl:1, 2 and 23 more",
        "bad, skipped    1 row, a message has no content: c.jsonl:7",
        "duplicates      2 rows (4.7%)",
        "control tokens  2 rows (4.7%) spell <|end|> 2×, <think> 1× in text: a.jsonl:5, 99",
        "empty answers   1 row (2.3%): a.jsonl:6",
        "end tokens cut  1 row (2.3%): a.jsonl:99",
        "data sets",
        "  a: 40 rows, 820 tokens, 4.9% trained, longest 40",
        "  other: 3 rows, 4,500 tokens, 2.0% trained, longest 1,500",
    ]


def test_a_mix_is_not_the_rows_that_were_read():
    lines = report_lines(filled(), train=100, held_out=0, bars=False)
    assert lines[0] == "rows            100 to train on, mixed from 43"
    assert lines[3].startswith("truncated")


def test_places_are_as_many_as_are_known():
    lines = report_lines(filled(), train=43, held_out=0)
    (dropped,) = (line for line in lines if line.startswith("dropped"))
    assert dropped.endswith(": b.jsonl:1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20 and 5 more")


def test_a_token_does_not_steer_the_terminal():
    tally = Tally()
    tally.add(np.arange(3, dtype=np.int32), 1)
    tally.note(False, {"\033[2J": 1}, place="a:1")
    assert "\\x1b[2J" in "\n".join(report_lines(data_report([("a", tally)], []), 1, 0))


def test_the_most_frequent_reasons():
    tally = Tally()
    tally.add(np.arange(3, dtype=np.int32), 1)
    for number in range(10):
        for _ in range(number + 1):
            tally.drop(f"reason {number}", f"a:{number}")
    lines = [line for line in report_lines(data_report([("a", tally)], []), 1, 0, places=0) if line.startswith("dropped")]
    assert lines[0] == "dropped         10 rows, reason 9"
    assert lines[7:] == ["dropped         3 rows, reason 2", "dropped         3 rows for 2 more reasons"]
