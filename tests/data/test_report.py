"""Counts add up, and a row is shown as it is trained."""

import json

import numpy as np
from transformers import AutoTokenizer

from ltune.data.report import Tally, data_report, show_row, write_report
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
        "name": "a", "rows": 3, "tokens": 131, "trained_tokens": 128, "truncated": 0, "control_tokens_in_text": 0, "duplicates": 0,
        "lengths": {"2": 1, "64": 1, "128": 1}, "dropped": {"too long": {"rows": 1, "places": ["a.jsonl:9"]}},
    }  # fmt: skip
    total = report["total"]
    assert (total["rows"], total["tokens"], total["truncated"], total["duplicates"]) == (4, 195, 1, 1)
    assert total["lengths"] == {"2": 1, "64": 2, "128": 1}
    assert total["dropped"]["too long"]["rows"] == 26
    assert total["dropped"]["too long"]["places"] == ["a.jsonl:9", *(f"b.jsonl:{number}" for number in range(19))]
    assert report["sources"] == [{"name": "a"}]


def row(text, answer):
    tokenizer = AutoTokenizer.from_pretrained(str(QUICKSTART.parent / "tiny"))
    prompt, ids = (tokenizer.encode(part, add_special_tokens=False) for part in (text, answer))
    return Sequence(np.array(prompt + ids, np.int32), np.array([IGNORE] * len(prompt) + ids, np.int32)), tokenizer


def test_the_trained_part_stands_in_brackets_off_a_terminal():
    assert show_row(*row("<|user|>\nhi ", "hello<|end|>")) == "<|user|>\nhi ⟦hello<|end|>⟧"


def test_it_is_green_on_a_terminal_unless_colour_is_unwanted(monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert show_row(*row("hi ", "you")) == "hi \033[32myou\033[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert show_row(*row("hi ", "you")) == "hi ⟦you⟧"


def test_a_row_does_not_steer_the_terminal():
    assert show_row(*row("\033[2J", "a")) == "\\x1b[2J⟦a⟧"
