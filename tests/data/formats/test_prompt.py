"""Prompts, in all forms that conversations have, and TRL's."""

import pytest

from ltune.data.formats import to_row
from ltune.data.rows import BadRow, Message, Prompt
from ltune.errors import UsageError

ASK, ANSWER = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}
USER, SAID = Message("user", "2 + 2?"), Message("assistant", "4")


def row(record, format=None, columns=None, tags=None):
    return to_row("a.jsonl:1", record, format, columns, tags, Prompt)


@pytest.mark.parametrize(
    ("record", "label", "others"),
    [
        ({"prompt": "2 + 2?"}, None, {}),
        ({"prompt": [ASK], "solution": 4}, None, {"solution": 4}),
        ({"prompt": "2 + 2?", "completion": "4", "level": "easy"}, "4", {"level": "easy"}),
        ({"prompt": [ASK], "completion": [ANSWER]}, "4", {}),
        ({"messages": [ASK, ANSWER], "id": 7}, "4", {"id": 7}),
        ({"messages": [ASK]}, None, {}),
        ({"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]}, "4", {}),
        ({"instruction": "2 + 2?", "input": "", "output": "4", "source": "us"}, "4", {"source": "us"}),
        ({"instruction": "2 + 2?"}, None, {}),
        ({"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}, None, {"chosen": "4", "rejected": "5"}),
    ],
)
def test_every_form_ends_where_the_assistant_is_to_answer(record, label, others):
    assert row(record) == Prompt("a.jsonl:1", (USER,), (), label, others)


def test_only_the_last_answer_is_the_label():
    made = row({"messages": [{"role": "system", "content": "s"}, ASK, ANSWER, ASK, {"role": "assistant", "content": "four"}]})
    assert made.messages == (Message("system", "s"), USER, SAID, USER)
    assert made.label == "four"
    again = row({"messages": [ASK, ANSWER, ASK]})
    assert (again.messages, again.label) == ((USER, SAID, USER), None)


def test_columns_that_the_data_set_names_play_their_part_and_the_others_stay():
    made = row({"question": "2 + 2?", "right": "4", "level": 3}, columns={"prompt": "question", "response": "right"})
    assert made == Prompt("a.jsonl:1", (USER,), (), "4", {"level": 3})
    bare = row({"question": "2 + 2?", "right": "4"}, columns={"prompt": "question"})
    assert bare == Prompt("a.jsonl:1", (USER,), (), None, {"right": "4"})


def test_what_is_no_prompt_is_refused():
    with pytest.raises(UsageError, match="plain text, the objective trains on prompts"):
        row({"text": "a story"})
    with pytest.raises(BadRow, match="prompt is empty"):
        row({"prompt": ""})
    with pytest.raises(BadRow, match="no known format"):
        row({"question": "2 + 2?"})
    with pytest.raises(BadRow, match="the roles must be"):
        row({"messages": [ANSWER]})
