"""Counts add up, and a row is shown as it is trained."""

import json
import pickle

import numpy as np
import pytest
from transformers import AutoTokenizer

from ltune.data.report import Tally, data_report, histogram, median, show_row, write_report
from ltune.data.rows import IGNORE, Sequence
from ltune.data.sources import QUICKSTART


def tally(*lengths):
    counted = Tally()
    for length in lengths:
        counted.add(np.arange(length, dtype=np.int32), length - 1)
    return counted


def test_counts_of_each_data_set_and_in_total(tmp_path):
    first, second = tally(2, 64, 65), tally(64)
    second.note(truncated=True, control_tokens=False)
    for number in range(25):
        second.drop("too long", f"b.jsonl:{number}")
    first.drop("too long", "a.jsonl:9")
    write_report(data_report([("a", first), ("b", second)], [{"name": "a"}]), tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["datasets"][0] == {
        "name": "a", "rows": 3, "tokens": 131, "trained_tokens": 128, "truncated": 0, "control_tokens_in_text": 0, "empty_answers": 0,
        "ends_cut": 0, "split": 0, "equal_answers": 0, "bad_rows": 0,
        "duplicates": 0, "one_answer": False, "lengths": {"2": 1, "64": 1, "128": 1},
        "median": 64, "longest": 65,
        "histogram": [[1, 8, 1], *([low, low + 7, 0] for low in range(9, 57, 8)), [57, 64, 1], [65, 72, 1]],
        "control_tokens": {}, "places": {}, "dropped": {"too long": {"rows": 1, "places": ["a.jsonl:9"]}}, "skipped": {},
    }  # fmt: skip
    total = report["total"]
    assert (total["rows"], total["tokens"], total["truncated"], total["duplicates"]) == (4, 195, 1, 1)
    assert total["lengths"] == {"2": 1, "64": 2, "128": 1}
    assert total["dropped"]["too long"]["rows"] == 26
    assert total["dropped"]["too long"]["places"] == ["a.jsonl:9", *(f"b.jsonl:{number}" for number in range(19))]
    assert report["sources"] == [{"name": "a"}]


def test_what_is_special_about_a_row_is_counted_with_its_place():
    counted = tally(3)
    counted.note(True, {"<|end|>": 2, "<think>": 1}, place="a:1")
    counted.note(False, {"<|end|>": 5}, empty_answer=True, place="a:2")
    counted.note(False, False, place="a:3")
    counted.note(False, True, end_cut=2)
    counted.note(False, {}, split=True, place="a:5")
    counted.note(False, {}, equal_answers=True, place="a:6")
    counted.skip("not JSON", "a:4")
    found = counted.as_dict()
    names = ("truncated", "control_tokens_in_text", "empty_answers", "ends_cut", "split", "equal_answers", "bad_rows")
    assert [found[name] for name in names] == [1, 3, 1, 1, 1, 1, 1]
    assert found["control_tokens"] == {"<|end|>": 7, "<think>": 1}
    assert found["places"] == {
        "truncated": ["a:1"], "control_tokens_in_text": ["a:1", "a:2"], "empty_answers": ["a:2"], "ends_cut": [], "split": ["a:5"],
        "equal_answers": ["a:6"],
    }  # fmt: skip
    assert found["skipped"] == {"not JSON": {"rows": 1, "places": ["a:4"]}}


def test_reasons_that_quote_the_row_do_not_fill_the_report():
    whole, parts = Tally(), Tally()
    for number in range(200):
        part = Tally()
        for counted in (whole, part):
            counted.skip(f"no number: {number}.\nWrite one.", f"a:{number}")
            counted.drop("no trained token", f"b:{number}")
        parts += part
    for found in (whole.as_dict(), parts.as_dict()):
        assert list(found["skipped"]) == [*(f"no number: {number}" for number in range(50)), "other reasons"]
        assert found["skipped"]["other reasons"] == {"rows": 150, "places": [f"a:{number}" for number in range(50, 70)]}
        assert found["bad_rows"] == 200
        assert list(found["dropped"]) == ["no trained token"]


def random_events(seed, rows=300):
    generator = np.random.default_rng(seed)
    for number in range(rows):
        ids = generator.integers(0, 4, 1 + int(generator.integers(0, 9)), dtype=np.int32)
        labels = np.where(generator.random(len(ids)) < 0.5, ids, IGNORE).astype(np.int32)
        yield number, ids, labels, generator.random(6) < 0.2


def count(events):
    counted = Tally()
    for number, ids, labels, (truncated, spelled, empty, cut, dropped, skipped) in events:
        place = f"rows:{number}"
        if skipped:
            counted.skip(f"reason {number % 2}", place)
        elif dropped:
            counted.drop(f"reason {number % 3}", place)
        else:
            counted.note(truncated, {"<a>": number} if spelled else {}, empty_answer=empty, end_cut=cut, place=place)
            counted.add(ids, int((labels != IGNORE).sum()), labels)
    return counted


def test_parts_add_up_to_the_whole_also_after_a_journey_to_another_process():
    events = list(random_events(7))
    added = Tally()
    for begin in range(0, len(events), 37):
        added += pickle.loads(pickle.dumps(count(events[begin : begin + 37])))
    assert added.as_dict() == count(events).as_dict()


@pytest.mark.parametrize(("answers", "same"), [([1, 1, 1], True), ([1, 2, 1], False), ([1], False), ([], False), ([1, 1, 2], False)])
def test_whether_all_answers_are_the_same(answers, same):
    whole, parts = Tally(), Tally()
    for number, answer in enumerate(answers):
        ids, part = np.array([7, number, answer], np.int32), Tally()
        for counted in (whole, part):
            counted.add(ids, 1, np.array([IGNORE, IGNORE, answer], np.int32))
        parts += part
    assert whole.as_dict()["one_answer"] is parts.as_dict()["one_answer"] is same


def test_lengths_in_equal_steps():
    assert histogram({}) == []
    assert histogram({5: 2}) == [[5, 5, 2]]
    assert histogram({1: 1, 16: 2}) == [[n, n, {1: 1, 16: 2}.get(n, 0)] for n in range(1, 17)]
    assert histogram({3: 1, 17: 1, 18: 1}) == [[3, 4, 1], *([low, low + 1, 0] for low in range(5, 17, 2)), [17, 18, 2]]
    assert len(histogram({1: 1, 131072: 1})) == 16
    assert median({1: 1, 2: 1, 3: 1}) == 2
    assert median({1: 1, 2: 1}) == 1


def row(text, answer):
    tokenizer = AutoTokenizer.from_pretrained(str(QUICKSTART.parent / "tiny"))
    prompt, ids = (tokenizer.encode(part, add_special_tokens=False) for part in (text, answer))
    return Sequence(np.array(prompt + ids, np.int32), np.array([IGNORE] * len(prompt) + ids, np.int32)), tokenizer


def test_the_trained_part_stands_in_brackets_off_a_terminal():
    assert show_row(*row("<|user|>\nhi ", "hello<|end|>")) == "‹<|user|>›\nhi ⟦hello‹<|end|>›⟧"


def test_it_is_green_on_a_terminal_unless_colour_is_unwanted(monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert show_row(*row("hi ", "you")) == "hi \033[32myou\033[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert show_row(*row("hi ", "you")) == "hi ⟦you⟧"


def test_control_tokens_have_colours_of_their_own(monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert show_row(*row("<|user|>\n", "you<|end|>")) == "\033[36m<|user|>\033[0m\n\033[32myou\033[0m\033[1;32m<|end|>\033[0m"


def test_a_row_does_not_steer_the_terminal():
    assert show_row(*row("\033[2J", "a")) == "\\x1b[2J⟦a⟧"
