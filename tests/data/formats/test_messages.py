"""Messages as the field writes them: reasoning, tool calls, content parts, and which roles may follow each other."""

import json

import pytest

from ltune.data.formats import to_row
from ltune.data.rows import BadRow, Chat, Message, ToolCall

ASK, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello!"}
RESULT = {"role": "tool", "content": "3"}


def chat(*messages, **columns):
    return to_row("a.jsonl:1", {"messages": list(messages), **columns}, None, None, None, Chat)


def shared(*messages, **columns):
    record = {"conversations": [dict(zip(("from", "value"), message, strict=True)) for message in messages], **columns}
    return to_row("a.jsonl:1", record, None, None, None, Chat)


def refusal(*messages, make=chat, **columns):
    with pytest.raises(BadRow) as error:
        make(*messages, **columns)
    return error.value.reason


def called(arguments, name="add", **more):
    return {
        "role": "assistant",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}],
        **more,
    }


# -- reasoning ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "reasoning", "rest"),
    [
        ("<think>\nso\nit is\n</think>\n\n4", "so\nit is", "4"),
        ("<think>so</think>4", "so", "4"),
        ("<think>\n\n</think>\n\n4", "", "4"),
        ("<think>  two spaces\n</think> 4", "  two spaces", " 4"),
        ("<think>a</think>b</think>c", "a", "b</think>c"),
        ("<think>never closed", None, "<think>never closed"),
        ("first <think>so</think>4", None, "first <think>so</think>4"),
        ("so</think>4", None, "so</think>4"),
    ],
)
def test_what_stands_between_think_tags_at_the_beginning_is_reasoning(content, reasoning, rest):
    expected = Message("assistant", rest, reasoning)
    assert chat(ASK, {"role": "assistant", "content": content}).messages[-1] == expected
    assert shared(("human", "hi"), ("gpt", content)).messages[-1] == expected
    assert to_row("a:1", {"instruction": "hi", "output": content}, None, None, None, Chat).messages[-1] == expected


def test_reasoning_may_stand_beside_the_content():
    for key in ("reasoning_content", "thinking"):
        assert chat(ASK, ANSWER | {key: "so"}).messages[-1] == Message("assistant", "Hello!", "so")
        assert chat(ASK, ANSWER | {key: None}).messages[-1] == Message("assistant", "Hello!")
    assert "twice" in refusal(ASK, {"role": "assistant", "content": "<think>a</think>b", "reasoning_content": "c"})
    assert "must be text; got 3" in refusal(ASK, ANSWER | {"reasoning_content": 3})
    assert "only the assistant's has reasoning" in refusal(ASK | {"reasoning_content": "so"}, ANSWER)


def test_a_users_think_tags_are_text():
    assert chat({"role": "user", "content": "<think>a</think>b"}, ANSWER).messages[0].content == "<think>a</think>b"


# -- tool calls -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", ['{"a": 1, "b": [2]}', {"a": 1, "b": [2]}])
def test_openais_calls_have_arguments_as_text_or_object(arguments):
    expected = Message("assistant", "", None, (ToolCall("add", {"a": 1, "b": [2]}),))
    for message in (called(arguments), called(arguments, content=None), called(arguments, content="")):
        assert chat(ASK, message, RESULT, ANSWER).messages[1:3] == (expected, Message("tool", "3"))
    assert chat(ASK, {"role": "assistant", "content": "I add.", "tool_calls": [{"name": "add", "arguments": arguments}]}).messages[1] == (
        Message("assistant", "I add.", None, expected.tool_calls)
    )


def test_a_call_may_have_no_arguments_and_reasoning():
    for arguments in ("", None, {}, "{}"):
        assert chat(ASK, called(arguments)).messages[-1].tool_calls == (ToolCall("add", {}),)
    assert chat(ASK, called("{}", reasoning_content="so")).messages[-1] == Message("assistant", "", "so", (ToolCall("add", {}),))


def test_openais_older_function_call_is_one_call():
    message = {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": '{"a": 1}'}}
    assert chat(ASK, message).messages[-1].tool_calls == (ToolCall("add", {"a": 1}),)


def test_sharegpts_calls_are_json_in_the_text():
    one, two = {"name": "add", "arguments": {"a": 1}}, {"name": "sub", "arguments": '{"b": 2}'}
    row = shared(("human", "hi"), ("function_call", json.dumps(one)), ("observation", "3"), ("gpt", "3."))
    assert row.messages[1:] == (
        Message("assistant", "", None, (ToolCall("add", {"a": 1}),)), Message("tool", "3"), Message("assistant", "3."),
    )  # fmt: skip
    both = shared(("human", "hi"), ("function_call", json.dumps([one, two])), ("observation", "3"), ("observation", ""), ("gpt", "3."))
    assert both.messages[1].tool_calls == (ToolCall("add", {"a": 1}), ToolCall("sub", {"b": 2}))
    assert both.messages[3] == Message("tool", "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("add(1)", "not JSON: Expecting value; got 'add(1)'"),
        ('{"name": "add"} {"name": "sub"}', "not JSON: something follows it"),
        ('{"name": "add", "name": "sub"}', 'the key "name" is given twice'),
        ("[]", "calls no tool"),
        ("3", "a tool call is"),
        ('{"name": ""}', "a tool call is"),
        ('{"name": "add", "arguments": [1]}', "the arguments of add must be an object; got [1]"),
        ('{"name": "add", "arguments": "[1"}', "the arguments of add: not JSON"),
        ("", "message 2 is empty"),
    ],
)
def test_a_call_that_is_none_is_named(text, words):
    assert words in refusal(("human", "hi"), ("function_call", text), make=shared)


def test_tool_calls_are_the_assistants():
    assert "only the assistant's has tool calls" in refusal(ASK | {"tool_calls": [{"name": "add"}]}, ANSWER)
    assert "tool_calls must be a list; got 3" in refusal(ASK, {"role": "assistant", "content": None, "tool_calls": "3"})


TOOL = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}


@pytest.mark.parametrize(
    "tools",
    [[TOOL], json.dumps([TOOL]), [{"type": "function", "function": TOOL}], [json.dumps({"type": "function", "function": TOOL})]],
)
def test_tools_are_a_column_of_schemas(tools):
    assert chat(ASK, ANSWER, tools=tools).tools == (TOOL,)
    assert shared(("human", "hi"), ("gpt", "x"), tools=tools).tools == (TOOL,)
    assert to_row("a:1", {"instruction": "hi", "output": "x", "tools": tools}, None, None, None, Chat).tools == (TOOL,)


def test_no_tools_and_tools_that_are_none():
    for tools in (None, "", " ", [], "[]"):
        assert chat(ASK, ANSWER, tools=tools).tools == ()
    assert "tools must be a list of tools; got {}" in refusal(ASK, ANSWER, tools="{}")
    assert "tools: a tool is" in refusal(ASK, ANSWER, tools=[{"type": "function"}])


# -- content --------------------------------------------------------------------------------------------------------------------------


def test_a_single_part_of_text_is_the_text():
    assert chat({"role": "user", "content": [{"type": "text", "text": "hi"}]}, ANSWER).messages[0] == Message("user", "hi")
    two = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert "one part of type text" in refusal({"role": "user", "content": two}, ANSWER)
    assert "brings input_audio" in refusal({"role": "user", "content": [{"type": "input_audio"}]}, ANSWER)


def test_what_would_change_the_training_is_not_passed_over():
    assert chat(ASK, ANSWER | {"weight": 1, "name": "x", "id": 3}).messages[-1] == Message("assistant", "Hello!")
    assert "weight 0" in refusal(ASK, ANSWER | {"weight": 0})
    assert "brings images" in refusal(ASK | {"images": ["a.png"]}, ANSWER)


def test_a_developer_is_the_system():
    assert chat({"role": "developer", "content": "s"}, ASK, ANSWER).messages[0] == Message("system", "s")


def test_long_conversations_have_names_for_all_messages():
    assert len(chat(*[ASK, ANSWER] * 800).messages) == 1600
    assert "message 1602 is empty" in refusal(*[ASK, ANSWER] * 800, ASK, RESULT | {"role": "user", "content": ""})


# -- order ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("roles", "words"),
    [
        ("ua", None), ("sua", None), ("uaua", None), ("ucta", None), ("ucttctaua", None), ("uc", None), ("uctc", None),
        ("", "has no messages"), ("s", "got ['system']"), ("a", "message 1 breaks this"), ("uu", "message 2 breaks this"),
        ("uaa", "message 3 breaks this"), ("u", "must end with the assistant"), ("uct", "must end with the assistant"),
        ("uta", "message 2 is a tool's result, and no tool was called"), ("uat", "message 3 is a tool's result"),
        ("ucua", "message 3 must be the result of the tool call"), ("ucc", "message 3 must be the result of the tool call"),
        ("usa", "message 2 breaks this"), ("ssua", "message 2 is a second system"), ("suasua", "message 4 is a second system"),
        ("ta", "message 1 is a tool's result"),
    ],
)  # fmt: skip
def test_which_roles_may_follow(roles, words):
    made = {"u": ASK, "a": ANSWER, "c": called("{}"), "t": RESULT, "s": {"role": "system", "content": "s"}}
    if words is None:
        assert len(chat(*(made[role] for role in roles)).messages) == len(roles)
    else:
        assert words in refusal(*(made[role] for role in roles))


def test_a_system_column_that_says_what_the_first_message_says_is_one_system_text():
    system = {"role": "system", "content": "s"}
    assert chat(system, ASK, ANSWER, system="s").messages == chat(system, ASK, ANSWER).messages == chat(ASK, ANSWER, system="s").messages
    assert "two system texts" in refusal(system, ASK, ANSWER, system="t")
