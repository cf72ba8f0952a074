"""Each format gives the conversation it means; what fits none is named, with its place."""

import json

import pytest

from ltune.data.formats import to_row
from ltune.data.rows import Chat, Message, Text
from ltune.errors import UsageError


def row(record, format=None, columns=None, tags=None, rows=Chat, **options):
    return to_row("rows.jsonl:7", record, format, columns, tags, rows, **options)


def said(record, **options):
    return [(message.role, message.content) for message in row(record, **options).messages]


def refusal(record, **options):
    with pytest.raises(UsageError) as error:
        row(record, **options)
    message = str(error.value)
    assert message.startswith("rows.jsonl:7: ")
    assert len(message.splitlines()) <= 5
    return message


TURNS = [("user", "hi"), ("assistant", "Hello!")]


def test_alpaca_joins_instruction_and_input_by_a_newline():
    assert said({"instruction": "Add", "input": "2 2", "output": "4"}) == [("user", "Add\n2 2"), ("assistant", "4")]
    assert said({"instruction": "hi", "input": "", "output": "Hello!"}) == TURNS
    assert said({"instruction": "hi", "output": "Hello!"}) == TURNS


def test_alpaca_system_and_history_stand_before():
    record = {"instruction": "c", "input": None, "output": "d", "system": "s", "history": [["a", "b"]]}
    assert said(record) == [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]


def test_columns_say_which_is_which_and_then_say_all():
    record = {"q": "hi", "a": "Hello!", "input": "not named, not read"}
    assert said(record, columns={"prompt": "q", "response": "a"}) == TURNS


def test_sharegpt_and_openai_are_told_apart_by_their_tags():
    assert said({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "Hello!"}]}) == TURNS
    assert said({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello!"}]}) == TURNS
    shouted = {"conversations": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello!"}]}
    assert said(shouted) == TURNS


def test_a_system_text_is_a_message_or_a_column():
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "Hello!"}]
    assert said({"conversations": turns, "system": "s"}) == [("system", "s"), *TURNS]
    assert said({"conversations": [{"from": "system", "value": "s"}, *turns]}) == [("system", "s"), *TURNS]


def test_tags_remap_roles():
    record = {"talk": [{"who": "me", "what": "hi"}, {"who": "you", "what": "Hello!"}]}
    tags = {"role_tag": "who", "content_tag": "what", "user_tag": "me", "assistant_tag": "you"}
    assert said(record, format="sharegpt", columns={"messages": "talk"}, tags=tags) == TURNS


def test_text_from_its_column_or_the_one_that_is_named():
    assert row({"text": "once"}, rows=Text) == Text("rows.jsonl:7", "once")
    assert row({"story": "once"}, columns={"prompt": "story"}, rows=Text) == Text("rows.jsonl:7", "once")


def test_the_kind_of_rows_must_be_the_objectives():
    assert "SFT" in refusal({"instruction": "hi", "output": "Hello!"}, rows=Text)
    assert "SFT" in refusal({"messages": []}, rows=Text)
    assert "Pretrain" in refusal({"text": "once"})


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"question": "hi", "answer": "x"}, "question, answer"),
        ({"instruction": "hi", "input": ""}, "output"),
        ({"instruction": "", "input": "", "output": "x"}, "instruction is empty"),
        ({"instruction": 3, "output": "x"}, "must be text; got 3"),
        ({"instruction": "hi", "output": None}, "must be text; got None"),
        ({"instruction": "hi", "output": "x", "history": ["a"]}, "history"),
        ({"instruction": "half \ud800", "output": "x"}, "surrogate"),
        ({"conversations": []}, "user, assistant"),
        ({"conversations": "hi"}, "list of messages"),
        ({"conversations": [{"from": "human", "value": "hi"}]}, "end with the assistant"),
        ({"conversations": [{"from": "gpt", "value": "hi"}]}, "got ['assistant']"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "human", "value": "b"}]}, "got ['user', 'user']"),
        ({"conversations": [{"from": "robot", "value": "a"}]}, "role 'robot'"),
        ({"conversations": [{"from": "human"}]}, "value"),
        ({"conversations": [{"from": "human", "value": ["hi"]}]}, "message 1 must be text"),
        ({"conversations": [{"from": "function_call", "value": "{}"}]}, "tool"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "tools": "[x]"}, "tools"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [1]}]}, "tool call"),
    ],
)
def test_what_is_wrong_is_named(record, words):
    assert words in refusal(record)


def test_an_unknown_format_and_columns_without_a_prompt_are_named():
    assert "alpaca, sharegpt, openai, text" in refusal({"text": "x"}, format="alpacca")
    assert "no prompt" in refusal({"a": "x"}, columns={"response": "a"})


def test_an_empty_answer_passes_and_a_question_alone_where_it_may():
    assert said({"instruction": "hi", "output": ""}) == [("user", "hi"), ("assistant", "")]
    assert row({"instruction": "hi"}, answered=False).messages == (Message("user", "hi"),)
    assert row({"messages": [{"role": "user", "content": "hi"}]}, answered=False).messages == (Message("user", "hi"),)


def test_the_demo_files(shared):
    info = json.loads((shared / "data" / "dataset_info.json").read_text())
    for name in ("identity", "alpaca_en_demo", "kto_en_demo"):
        entry = info[name]
        for record in json.loads((shared / "data" / entry["file_name"]).read_text()):
            chat = row(record, entry.get("formatting"), entry.get("columns"), entry.get("tags"))
            assert chat.messages[-1].role == "assistant"
