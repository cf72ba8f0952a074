"""Pairs and rated answers, in LLaMA-Factory's forms and TRL's."""

import pytest

from ltune.data.formats import to_row
from ltune.data.rows import BadRow, Chat, Message, Pair, Rated, ToolCall
from ltune.errors import UsageError

ASK, GOOD, BAD = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello!"}, {"role": "assistant", "content": "What?"}
USER, CHOSEN, REJECTED = Message("user", "hi"), Message("assistant", "Hello!"), Message("assistant", "What?")
EXPECTED = Pair("a.jsonl:1", (USER,), CHOSEN, REJECTED)


def row(record, kind, format=None, columns=None, tags=None):
    return to_row("a.jsonl:1", record, format, columns, tags, kind)


def refusal(record, kind, error=BadRow, **options):
    with pytest.raises(error) as caught:
        row(record, kind, **options)
    assert len(str(caught.value).splitlines()) <= 5
    return str(caught.value)


ENDS = {"chosen": "chosen", "rejected": "rejected"}


@pytest.mark.parametrize(
    ("record", "options"),
    [
        # LLaMA-Factory's: a conversation, and messages or texts behind it
        (
            {"conversations": [{"from": "human", "value": "hi"}], "chosen": {"from": "gpt", "value": "Hello!"},
             "rejected": {"from": "gpt", "value": "What?"}},
            {"format": "sharegpt", "columns": {"messages": "conversations", **ENDS}},
        ),
        ({"conversations": [{"from": "human", "value": "hi"}], "chosen": "Hello!", "rejected": "What?"}, {}),
        ({"messages": [ASK], "chosen": GOOD, "rejected": BAD}, {}),
        ({"instruction": "hi", "input": "", "chosen": "Hello!", "rejected": "What?"}, {}),
        ({"q": "hi", "good": "Hello!", "bad": "What?"}, {"columns": {"prompt": "q", "chosen": "good", "rejected": "bad"}}),
        # TRL's: with a prompt, plain or conversational
        ({"prompt": "hi", "chosen": "Hello!", "rejected": "What?"}, {}),
        ({"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]}, {}),
        ({"prompt": [ASK], "chosen": "Hello!", "rejected": "What?"}, {}),
        ({"prompt": "hi", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, {}),
        ({"prompt": "hi", "chosen": [ASK, GOOD], "rejected": [ASK, BAD], "messages": [ASK, GOOD]}, {}),
        # and without one
        ({"chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, {}),
        ({"chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, {"columns": ENDS}),
        ({"chosen": "hi Hello!", "rejected": "hi What?"}, {}),
    ],
)  # fmt: skip
def test_pairs(record, options):
    assert row(record, Pair, **options) == EXPECTED


def test_history_system_and_tools_stand_before_the_answers():
    system = {"role": "system", "content": "s"}
    made = row({"prompt": [system, ASK, GOOD, ASK], "chosen": [GOOD], "rejected": [BAD], "tools": [{"name": "add"}]}, Pair)
    assert made.messages == (Message("system", "s"), USER, CHOSEN, USER)
    assert made.tools == ({"name": "add"},)
    assert row({"instruction": "b", "history": [["hi", "Hello!"]], "system": "s", **ENDS}, Pair).messages == (
        Message("system", "s"), USER, CHOSEN, Message("user", "b"),
    )  # fmt: skip


def test_an_answer_may_be_a_tool_call_or_have_reasoning():
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "add", "arguments": {}}]}
    made = row({"messages": [ASK], "chosen": call, "rejected": "<think>so</think>What?"}, Pair)
    assert made.chosen.tool_calls == (ToolCall("add", {}),)
    assert made.rejected == Message("assistant", "What?", "so")


def test_plain_texts_without_a_prompt_part_at_white_space():
    made = row({"chosen": "The sky is blue.", "rejected": "The sky is black."}, Pair)
    assert (made.messages, made.chosen.content, made.rejected.content) == ((Message("user", "The sky is"),), "blue.", "black.")
    longer = row({"chosen": "The sky is blue.", "rejected": "The sky is"}, Pair)
    assert (longer.messages[0].content, longer.chosen.content, longer.rejected.content) == ("The sky", "is blue.", "is")
    assert "do not begin with the same words" in refusal({"chosen": "a b", "rejected": "c d"}, Pair)


@pytest.mark.parametrize(
    ("record", "options", "words"),
    [
        ({"prompt": "hi", "chosen": "x"}, {}, "a pair needs the column rejected"),
        ({"prompt": "hi", "chosen": "x", "rejected": None}, {}, "rejected must be text; got None"),
        ({"prompt": "hi", "chosen": [], "rejected": "x"}, {"format": "completion"}, "chosen is empty"),
        ({"prompt": "hi", "chosen": [ASK], "rejected": [BAD]}, {}, "chosen must be one answer of the assistant; got ['user']"),
        ({"prompt": [ASK, GOOD], "chosen": [GOOD], "rejected": [BAD]}, {}, "must end with what the assistant is to answer"),
        ({"chosen": [ASK, GOOD], "rejected": [BAD]}, {}, "the same conversation up to the last message"),
        ({"instruction": "hi", "output": "x"}, {}, "a pair needs the column chosen and rejected"),
        ({"instruction": "hi", "output": "x"}, {"columns": {"prompt": "instruction", "response": "output"}}, "no chosen and rejected"),
    ],
)
def test_pairs_that_are_none(record, options, words):
    assert words in refusal(record, Pair, **options)


# -- rated ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "options"),
    [
        ({"messages": [ASK, GOOD], "label": True}, {"columns": {"messages": "messages", "kto_tag": "label"}}),
        ({"messages": [ASK, GOOD], "kto_tag": True}, {}),
        ({"instruction": "hi", "input": "", "output": "Hello!", "kto_tag": True}, {}),
        ({"q": "hi", "a": "Hello!", "ok": True}, {"columns": {"prompt": "q", "response": "a", "kto_tag": "ok"}}),
        ({"prompt": "hi", "completion": "Hello!", "label": True}, {}),
        ({"prompt": [ASK], "completion": [GOOD], "label": True}, {}),
        ({"prompt": "hi", "completion": "Hello!", "label": "True"}, {}),
        ({"prompt": "hi", "completion": "Hello!", "label": 1}, {}),
    ],
)
def test_rated_answers(record, options):
    assert row(record, Rated, **options) == Rated("a.jsonl:1", (USER,), CHOSEN, True)


@pytest.mark.parametrize("label", [False, 0, "false", "0"])
def test_a_bad_answer(label):
    assert row({"prompt": "hi", "completion": "Hello!", "label": label}, Rated).good is False


@pytest.mark.parametrize(
    ("record", "options", "words"),
    [
        ({"prompt": "hi", "completion": "x"}, {}, "a rated answer needs the column label"),
        ({"prompt": "hi", "completion": "x", "label": None}, {}, "label must be true or false; got None"),
        ({"prompt": "hi", "completion": "x", "label": 2}, {}, "label must be true or false; got 2"),
        ({"prompt": "hi", "label": True}, {"format": "completion"}, "completion needs the column completion"),
        ({"messages": [ASK], "label": True}, {}, "must end with the assistant"),
        ({"messages": [ASK, GOOD], "label": True}, {"columns": {"messages": "messages"}}, "name no kto_tag"),
    ],
)
def test_rated_answers_that_are_none(record, options, words):
    assert words in refusal(record, Rated, **options)


# -- for other objectives -------------------------------------------------------------------------------------------------------------


def test_pairs_and_rated_answers_are_no_conversations():
    for record in (
        {"prompt": "hi", **ENDS},
        {"messages": [ASK], **ENDS},
        {"instruction": "hi", **ENDS},
        {"chosen": [ASK, GOOD], "rejected": []},
    ):
        assert "pairs of answers" in refusal(record, Chat, UsageError)
    assert "pairs of answers" in refusal({"q": "hi"}, Chat, UsageError, columns={"prompt": "q", **ENDS})
    assert "rated answers" in refusal({"messages": [ASK, GOOD]}, Chat, UsageError, columns={"messages": "messages", "kto_tag": "label"})
    assert row({"prompt": "hi", **ENDS}, Chat, columns={"prompt": "prompt", "response": "chosen"}).messages[-1].content == "chosen"


def test_plain_text_is_neither():
    for kind in (Pair, Rated):
        assert "plain text" in refusal({"text": "x"}, kind, UsageError)
