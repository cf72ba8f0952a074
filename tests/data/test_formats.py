"""Each format gives the conversation it means; what fits none is named, with its place."""

import json
import pickle

import pytest

from ltune.data.formats import rows_of, settled, to_row
from ltune.data.rows import BadRow, Chat, Message, Pair, Rated, Text
from ltune.data.sources import read, resolve
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
        ({"conversations": []}, "conversations is empty"),
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
    assert "alpaca, sharegpt, openai, completion, text" in refusal({"text": "x"}, format="alpacca")
    assert "no prompt" in refusal({"a": "x"}, columns={"response": "a"})


def test_an_empty_answer_passes_and_a_question_alone_where_it_may():
    assert said({"instruction": "hi", "output": ""}) == [("user", "hi"), ("assistant", "")]
    assert row({"instruction": "hi"}, answered=False).messages == (Message("user", "hi"),)
    assert row({"messages": [{"role": "user", "content": "hi"}]}, answered=False).messages == (Message("user", "hi"),)


@pytest.mark.parametrize(
    ("name", "kind", "rows"),
    [
        ("identity", Chat, 91),
        ("alpaca_en_demo", Chat, 999),
        ("glaive_toolcall_en_demo", Chat, 300),
        ("c4_demo", Text, 300),
        ("dpo_en_demo", Pair, 300),
        ("kto_en_demo", Rated, 300),
    ],
)
def test_the_demo_files_by_dataset_info_alone(shared, name, kind, rows):
    made = list(rows_of(resolve(name, shared / "data"), kind))
    assert len(made) == rows
    assert {type(row) for row in made} == {kind}
    if name == "glaive_toolcall_en_demo":
        called = [call.name for row in made for message in row.messages for call in message.tool_calls]
        assert len(called) == (shared / "data" / f"{name}.json").read_text().count('"from": "function_call"') == 211
        assert all(tool["parameters"] for row in made for tool in row.tools)
    if kind is Rated:
        assert {row.good for row in made} == {True, False}


# -- a whole data set -----------------------------------------------------------------------------------------------------------------


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" if isinstance(record, dict) else record for record in records))
    return resolve(str(path), "nowhere")


GOOD, TALK = (
    {"instruction": "hi", "output": "Hello!"},
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "a"}]},
)


def test_the_first_row_settles_the_format(tmp_path):
    source = write(tmp_path / "a.jsonl", GOOD, TALK)
    with pytest.raises(BadRow, match=r"a\.jsonl:2: alpaca needs the column instruction; the row has messages"):
        list(rows_of(source, Chat))
    assert settled(source, list(read(source)), Chat).format == "alpaca"
    assert settled(source, [], Chat) == source


def test_bad_rows_are_skipped_and_told(tmp_path):
    source = write(tmp_path / "a.jsonl", "{broken\n", GOOD, TALK, GOOD, '{"instruction": "hi", "output": 3}\n', "[1]\n", GOOD)
    told = []
    made = list(rows_of(source, Chat, bad_rows="skip", on_bad=lambda place, reason: told.append((place, reason.split(";")[0]))))
    assert [row.place for row in made] == ["a.jsonl:2", "a.jsonl:4", "a.jsonl:7"]
    assert told == [
        ("a.jsonl:1", "malformed JSON: Expecting property name enclosed in double quotes (column 2), got 'broken'."),
        ("a.jsonl:3", "alpaca needs the column instruction"),
        ("a.jsonl:5", "output must be text"),
        ("a.jsonl:6", "a row must be an object of columns"),
    ]
    with pytest.raises(BadRow, match=r"a\.jsonl:1: malformed JSON"):
        list(rows_of(source, Chat))


def test_settings_that_are_wrong_are_no_bad_rows(tmp_path):
    for source, kind in ((write(tmp_path / "a.jsonl", {"text": "x"}), Chat), (write(tmp_path / "b.jsonl", GOOD | TALK), Chat)):
        with pytest.raises(UsageError) as error:
            list(rows_of(source, kind, bad_rows="skip"))
        assert not isinstance(error.value, BadRow)


def test_a_bad_row_travels_between_processes():
    again = pickle.loads(pickle.dumps(BadRow("a:1", "is bad")))
    assert (str(again), again.place, again.reason, again.exit_code) == ("a:1: is bad", "a:1", "is bad", 2)
