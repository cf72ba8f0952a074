"""Prompts in tokens: nothing trained, whole up to the limit, and what becomes of longer ones."""

import json

import pytest

from ltune.data.encode import Dropped, Encoder
from ltune.data.prepared import prepare
from ltune.data.remarks import remarks
from ltune.data.rows import Chat, Message, Prompt
from ltune.data.templates import load_template
from ltune.errors import UsageError
from ltune.models.tokenizer import load_tokenizer

TINY = load_tokenizer("tiny")
HISTORY = (Message("user", "one two three"), Message("assistant", "four five"), Message("user", "six seven eight nine ten"))
SYSTEM = Message("system", "be kind")


def process(row, max_length=1000, truncation="left", template="chatml"):
    return Encoder(load_template(template, TINY), TINY, max_length=max_length, truncation=truncation).process(row)


def ids_of(made):
    (sequence,) = made.sequences
    assert (sequence.labels == -100).all()
    return sequence.input_ids.tolist()


@pytest.mark.parametrize("template", ["chatml", "llama3", None])
def test_a_prompt_is_what_predict_asks(template):
    encoder = Encoder(load_template(template, TINY), TINY, max_length=1000)
    made = encoder.process(Prompt("here:1", HISTORY))
    assert ids_of(made) == encoder.prompt(Chat("here:1", HISTORY))[0]
    assert not made.truncated


@pytest.mark.parametrize("template", ["chatml", "llama3", None])
def test_a_longer_one_loses_old_rounds_then_the_beginning_of_the_question(template):
    whole = ids_of(process(Prompt("here:1", HISTORY[-1:]), template=template))
    made = process(Prompt("here:1", HISTORY), len(whole), template=template)
    assert ids_of(made) == whole
    assert made.truncated
    shorter = ids_of(process(Prompt("here:1", HISTORY), len(whole) - 2, template=template))
    assert len(shorter) == len(whole) - 2
    ends = [ids_of(process(Prompt("here:1", (Message("user", text),)), template=template)) for text in ("x", "y")]
    same = next(number for number, (a, b) in enumerate(zip(ends[0][::-1], ends[1][::-1], strict=True)) if a != b)
    assert shorter[-same:] == whole[-same:]  # the header of the answer stays
    assert TINY.decode(shorter).count("ten") == 1


def test_the_system_text_stays():
    whole = ids_of(process(Prompt("here:1", (SYSTEM, *HISTORY))))
    made = process(Prompt("here:1", (SYSTEM, *HISTORY)), len(whole) - 3)
    text = TINY.decode(ids_of(made))
    assert "be kind" in text
    assert "four five" not in text
    assert text.endswith("<|im_start|>assistant\n")


def test_the_other_policies():
    row = Prompt("here:1", HISTORY, label="eleven")
    whole = ids_of(process(row))
    assert process(row, 20, "drop") == Dropped("longer than 20 tokens")
    with pytest.raises(UsageError, match=r"here:1: \d+ tokens, and data.max_length is 20"):
        process(row, 20, "error")
    assert ids_of(process(row, 20, "split")) == ids_of(process(row, 20, "left"))
    cut = ids_of(process(row, 20, "llamafactory"))
    assert cut == whole[: len(cut)]
    assert len(cut) < 20  # the label has its share


def test_what_the_row_says_besides_goes_along():
    made = process(Prompt("here:1", HISTORY[-1:], label="yes", columns={"level": 3, "tags": ["a"], "when": 1.5, "odd": b"x"}))
    assert json.loads(made.sequences[0].note) == {
        "place": "here:1",
        "messages": [{"role": "user", "content": "six seven eight nine ten"}],
        "label": "yes",
        "columns": {"level": 3, "tags": ["a"], "when": 1.5, "odd": "b'x'"},
    }


def test_it_is_kept_with_the_prepared_rows(tmp_path):
    file = tmp_path / "asked.jsonl"
    file.write_text('{"prompt": "one two", "level": 3}\n{"prompt": "three", "completion": "four"}\n')
    encoder = Encoder(load_template(None, TINY), TINY, max_length=100)
    made = prepare([str(file)], tmp_path, rows=Prompt, encoder=encoder, cache=tmp_path / "cache")
    notes = [json.loads(sequence.note) for row in range(2) for sequence in made[row]]
    assert [(note["label"], note["columns"]) for note in notes] == [(None, {"level": 3}), ("four", {})]
    assert made.trained.tolist() == [0, 0]
    assert remarks(made.report) == []
    assert made.report["total"]["rows"] == 2
