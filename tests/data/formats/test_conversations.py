"""TRL's prompt and completion, which column is read, and pictures that are not."""

import pytest

from ltune.data.formats import to_row
from ltune.data.rows import BadRow, Chat, Message
from ltune.errors import UsageError

TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello!"}]
EXPECTED = (Message("user", "hi"), Message("assistant", "Hello!"))


def said(record, format=None, columns=None, tags=None):
    return to_row("a.jsonl:1", record, format, columns, tags, Chat).messages


@pytest.mark.parametrize(
    ("record", "options"),
    [
        ({"prompt": "hi", "completion": "Hello!"}, {}),
        ({"prompt": TALK[:1], "completion": TALK[1:]}, {}),
        ({"prompt": TALK[:1], "completion": "Hello!"}, {}),
        ({"prompt": "hi", "completion": TALK[1:]}, {}),
        ({"prompt": [{"from": "human", "value": "hi"}], "completion": [{"from": "gpt", "value": "Hello!"}]}, {}),
        ({"q": TALK[:1], "a": TALK[1:]}, {"columns": {"prompt": "q", "response": "a"}}),
        ({"messages": TALK, "prompt": "hi", "prompt_id": "7", "text": "formatted"}, {}),
        ({"instruction": "hi", "input": "", "output": "Hello!", "text": "formatted"}, {}),
        ({"instruction": "", "input": "hi", "output": "Hello!"}, {}),
        ({"messages": TALK, "conversations": "other"}, {"format": "openai"}),
        ({"messages": TALK, "instruction": "other"}, {"columns": {"messages": "messages"}}),
        ({"instruction": "hi", "output": "Hello!", "messages": "other"}, {"format": "alpaca"}),
    ],
)
def test_the_conversation_that_is_meant(record, options):
    assert said(record, **options) == EXPECTED


def test_a_completion_goes_on_where_the_prompt_ends():
    more = [*TALK, {"role": "user", "content": "and?"}]
    assert [message.role for message in said({"prompt": more, "completion": TALK[1:]})] == ["user", "assistant"] * 2
    with pytest.raises(BadRow, match="message 3 breaks this"):
        said({"prompt": TALK, "completion": TALK[1:]})


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"messages": TALK, "instruction": "hi", "output": "x"}, "openai (messages) and alpaca (instruction)"),
        ({"conversations": TALK, "messages": TALK}, "openai (conversations) and openai (messages)"),
        ({"messages": TALK, "prompt": "hi", "completion": "x"}, "openai (messages) and completion (completion)"),
    ],
)
def test_two_formats_are_one_too_many(record, words):
    with pytest.raises(UsageError) as error:
        said(record)
    assert words in str(error.value)
    assert f"The row has {', '.join(record)}." in str(error.value)


def test_pictures_are_refused_where_a_row_has_some():
    for part in ("images", "videos", "audios", "image", "video", "audio"):
        assert said({"instruction": "hi", "output": "Hello!", part: []}) == EXPECTED
        with pytest.raises(BadRow, match=f"brings {part}"):
            said({"instruction": "hi", "output": "Hello!", part: ["a"]})
    for part in ("images", "videos", "audios"):
        with pytest.raises(BadRow, match=rf"brings {part} \(column pics\)"):
            said(
                {"instruction": "hi", "output": "Hello!", "pics": ["a"]},
                columns={"prompt": "instruction", "response": "output", part: "pics"},
            )
