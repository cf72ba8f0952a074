"""Tools, calls and results in the formats of the named templates and through a tokenizer's own; a data set of tool calls is encoded."""

import json
from dataclasses import replace

import pytest
from transformers import AutoTokenizer

from ltune.data.encode import Dropped, Encoder
from ltune.data.formats import to_row
from ltune.data.openai_messages import to_openai, wrapped
from ltune.data.rows import IGNORE, Chat, Message, ToolCall
from ltune.data.sources import QUICKSTART
from ltune.data.template_files import named, names, tool_formats
from ltune.data.templates import load_template
from ltune.errors import UsageError

TOOL = {
    "name": "look_up",
    "description": "Finds words",
    "parameters": {
        "type": "object",
        "properties": {
            "word": {"type": "string", "description": "what to find"},
            "kind": {"type": "string", "enum": ["noun", "verb"]},
            "items": {"type": "array", "items": {"type": "integer"}},
        },
        "required": ["word"],
    },
}
CALL = ToolCall("look_up", {"word": 'a "b" 你', "many": [1, None, True]})
TALK = [
    Message("system", "Be terse."),
    Message("user", "hi"),
    Message("assistant", "", tool_calls=(CALL,)),
    Message("tool", '{"found": 1}'),
    Message("assistant", "yes"),
]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(str(QUICKSTART.parent / "tiny"))


def rendered(name, tokenizer, messages=TALK, tools=(TOOL,)):
    return load_template(name, tokenizer).render(messages, tools=tools)


def trained(segments):
    return [segment.text for segment in segments if segment.trained]


def test_default(tokenizer):
    segments = rendered("default", tokenizer)
    assert segments[0].text == (
        "System: Be terse.You have access to the following tools:\n"
        "> Tool Name: look_up\nTool Description: Finds words\nTool Args:\n"
        "  - word (string, required): what to find\n"
        "  - kind (string): , should be one of [noun, verb]\n"
        "  - items (array): , where each item should be integer\n"
        "\n"
        "Use the following format if using a tool:\n```\nAction: tool name (one of [look_up])\n"
        "Action Input: the input to the tool, in a JSON format representing the kwargs "
        '(e.g. ```{"input": "hello world", "num_beams": 5}```)\n```\n<|end|>\nHuman: hi<|end|>\nAssistant:'
    )
    assert trained(segments) == [
        'Action: look_up\nAction Input: {"word": "a \\"b\\" 你", "many": [1, null, true]}<|end|>\n',
        "yes<|end|>\n",
    ]
    assert segments[2].text == 'Human: {"found": 1}<|end|>\nAssistant:'


def test_llama3(tokenizer):
    segments = rendered("llama3", tokenizer)
    assert segments[0].text == (
        "<|bos|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
        "You have access to the following functions. To call a function, please respond with JSON for a function call. "
        'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}. '
        f"Do not use variables.\n\n{json.dumps(wrapped([TOOL])[0], indent=4)}\n\nBe terse.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert trained(segments) == [
        '{"name": "look_up", "parameters": {"word": "a \\"b\\" 你", "many": [1, null, true]}}<|eot_id|>',
        "yes<|eot_id|>",
    ]
    assert segments[2].text.startswith('<|start_header_id|>ipython<|end_header_id|>\n\n{"found": 1}<|eot_id|>')


def test_a_date_is_written_where_it_is_asked_for(tokenizer):
    asked = load_template("llama3", tokenizer, date="2026-02-03")
    assert "Today Date: 03 Feb 2026\n" in asked.render(TALK, tools=(TOOL,))[0].text
    own = "{{ strftime_now('%Y-%m-%d') }} {{ date_string }}{% for m in messages %}{{ m.content }}{% endfor %}"
    template = replace(asked, source=own)
    assert template.text(TALK[1:2]) == "2026-02-03 03 Feb 2026hi"
    assert replace(template, date=None).text(TALK[1:2]) == "2024-07-26 hi"
    assert Encoder(asked, tokenizer, max_length=9).settings() != Encoder(replace(asked, date=None), tokenizer, max_length=9).settings()


@pytest.mark.parametrize("text", ["today", "26 Jul 2024", "2026-02-30", ""])
def test_what_is_no_date_is_refused(tokenizer, text):
    with pytest.raises(UsageError, match="is no date"):
        load_template("llama3", tokenizer, date=text)


def test_qwen(tokenizer):
    segments = rendered("qwen", tokenizer)
    assert segments[0].text == (
        "<|im_start|>system\nBe terse.\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n"
        f"<tools>\n{json.dumps(wrapped([TOOL])[0])}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:\n"
        '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert trained(segments)[0] == (
        '<tool_call>\n{"name": "look_up", "arguments": {"word": "a \\"b\\" 你", "many": [1, null, true]}}\n</tool_call><|im_end|>\n'
    )
    assert segments[2].text == (
        '<|im_start|>user\n<tool_response>\n{"found": 1}\n</tool_response><|im_end|>\n<|im_start|>assistant\n'
    )  # fmt: skip


def test_mistral(tokenizer):
    segments = rendered("mistral", tokenizer)
    assert segments[0].text == (
        f"<|bos|>[AVAILABLE_TOOLS] {json.dumps(wrapped([TOOL]))}[/AVAILABLE_TOOLS][INST] Be terse.\n\nhi[/INST]"
    )  # fmt: skip
    assert trained(segments) == [
        '[TOOL_CALLS] [{"name": "look_up", "arguments": {"word": "a \\"b\\" 你", "many": [1, null, true]}}]<|end|>',
        " yes<|end|>",
    ]
    assert segments[2].text == '[TOOL_RESULTS] {"content": {"found": 1}}[/TOOL_RESULTS]'


def test_glm4(tokenizer):
    segments = rendered("glm4", tokenizer)
    assert (
        f"# 可用工具\n\n## look_up\n\n{json.dumps(TOOL, indent=4)}\n在调用上述函数时，请使用 Json 格式表示调用的参数。<|user|>"
        in segments[0].text
    )
    assert trained(segments) == ['look_up\n{"word": "a \\"b\\" 你", "many": [1, null, true]}', "\nyes"]
    assert segments[2].text == '<|observation|>\n{"found": 1}<|assistant|>'


TAGS = {
    "glm4_moe": "<tool_call>look_up\n<arg_key>word</arg_key>\n<arg_value>a \"b\" 你</arg_value>\n<arg_key>many</arg_key>\n"
    "<arg_value>[1, null, true]</arg_value>\n</tool_call>",
    "qwen3_5": '<tool_call>\n<function=look_up>\n<parameter=word>\na "b" 你\n</parameter>\n<parameter=many>\n[1, null, true]\n'
    "</parameter>\n</function>\n</tool_call>",
    "seed_oss": '<seed:tool_call>\n<function=look_up>\n<parameter=word>a "b" 你</parameter>\n<parameter=many>[1, null, true]</parameter>\n'
    "</function>\n</seed:tool_call>",
    "minimax1": '<tool_calls>\n{"name": "look_up", "arguments": {"word": "a \\"b\\" 你", "many": [1, null, true]}}\n</tool_calls>',
    "minimax2": '<minimax:tool_call>\n<invoke name="look_up">\n<parameter name="word">a "b" 你</parameter>\n'
    '<parameter name="many">[1, null, true]</parameter>\n</invoke>\n</minimax:tool_call>',
    "lfm2": '<|tool_call_start|>[look_up(word="a \\"b\\" 你", many=[1, null, true])]<|tool_call_end|>',
    "gemma4": '<|tool_call>call:look_up{many:[1,null,true],word:<|"|>a "b" 你<|"|>}<tool_call|>',
    "phi4_mini": 'Action: look_up\nAction Input: {"word": "a \\"b\\" 你", "many": [1, null, true]}',
    "bailing_v2": '<tool_call>\n{"name": "look_up", "arguments": {"word": "a \\"b\\" 你", "many": [1, null, true]}}\n</tool_call>',
}  # fmt: skip


ORDERS = [  # arguments, and what gemma4 makes of them: names by their code points, at every depth
    ({"b": 1, "a": 2}, "{a:2,b:1}"),
    ({"alpha": 1, "Beta": 2, "gamma": 3, "Delta": 4}, "{Beta:2,Delta:4,alpha:1,gamma:3}"),
    ({"a_b": 1, "aB": 2, "a1": 3, "a": 4, "a-b": 5, "_a": 6}, "{_a:6,a:4,a-b:5,a1:3,aB:2,a_b:1}"),
    ({"é": 1, "z": 2, "Z": 3, "你": 4, "10": 5, "9": 6, "": 7, "a b": 8}, "{:7,10:5,9:6,Z:3,a b:8,z:2,é:1,你:4}"),
    ({"x": {"b": [{"d": 1, "C": 2}], "A": None}, "X": True}, "{X:true,x:{A:null,b:[{C:2,d:1}]}}"),
    ({"same": 1, "Same": 2, "SAME": 3}, "{SAME:3,Same:2,same:1}"),
    ({}, "{}"),
]


@pytest.mark.parametrize(("arguments", "expected"), ORDERS)
def test_gemma4_orders_arguments_by_code_points(tokenizer, arguments, expected):
    talk = [*TALK[:2], Message("assistant", "", tool_calls=(ToolCall("look_up", arguments),)), *TALK[3:]]
    assert f"<|tool_call>call:look_up{expected}<tool_call|>" in trained(rendered("gemma4", tokenizer, talk))[0]


@pytest.mark.parametrize("name", TAGS)
def test_calls_in_tags(tokenizer, name):
    assert TAGS[name] in trained(rendered(name, tokenizer))[0]


def test_every_format_is_shown_above():
    assert {named(name).facts.tool_format for name in [*TAGS, "default", "llama3", "qwen", "mistral", "glm4"]} == set(tool_formats())


def test_every_template_takes_tools_with_and_without_a_system_text(tokenizer):
    for name in names():
        template = load_template(name, tokenizer)
        for messages in (TALK, TALK[1:]):
            segments = template.render(messages, tools=(TOOL, {"name": "stop", "description": "", "parameters": {}}))
            assert "Finds words" in segments[0].text, name
            assert '{"found": 1}' in segments[2].text, name
            assert ["look_up" in text for text in trained(segments)] == [True, False], name


def test_several_calls(tokenizer):
    two = [
        TALK[1],
        Message("assistant", "Well,", tool_calls=(CALL, ToolCall("stop", {}))),
        Message("tool", "1"),
        Message("tool", "2"),
        TALK[-1],
    ]
    qwen = rendered("qwen", tokenizer, two)
    assert trained(qwen)[0].startswith('Well,\n<tool_call>\n{"name": "look_up"')
    assert trained(qwen)[0].endswith('}\n</tool_call>\n<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call><|im_end|>\n')
    results = "<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>"
    assert qwen[2].text == f"<|im_start|>user\n{results}<|im_end|>\n<|im_start|>assistant\n"
    assert trained(rendered("llama3", tokenizer, two))[0].startswith('Well,[{"name": "look_up", "parameters": {"word"')
    assert trained(rendered("mistral", tokenizer, two))[0].endswith(', {"name": "stop", "arguments": {}}]<|end|>')
    with pytest.raises(Exception, match="has one tool call in an answer"):
        rendered("glm4", tokenizer, two)


def test_the_tokenizers_own_template_gets_them_as_openai_writes_them(tokenizer):
    assert to_openai(TALK[2:4], True) == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "call00000", "type": "function", "function": {"name": "look_up", "arguments": CALL.arguments}}],
        },
        {"role": "tool", "content": '{"found": 1}', "name": "look_up", "tool_call_id": "call00000"},
    ]
    assert wrapped([TOOL]) == [{"type": "function", "function": TOOL}]
    assert wrapped(wrapped([TOOL])) == wrapped([TOOL])
    assert wrapped([]) is None


@pytest.mark.parametrize("name", ["llama3", "qwen", "mistral", "glm4", "default"])
def test_a_data_set_of_tool_calls_is_encoded(shared, tokenizer, name):
    records = json.loads((shared / "data" / "glaive_toolcall_en_demo.json").read_text())
    columns = {"messages": "conversations", "tools": "tools"}
    encoder = Encoder(load_template(name, tokenizer), tokenizer, max_length=100_000)
    calls = 0
    for number, record in enumerate(records[:60]):
        row = to_row(f"row {number}", record, "sharegpt", columns, None, Chat)
        outcome = encoder.process(row)
        assert not isinstance(outcome, Dropped), outcome
        (sequence,) = outcome.sequences
        ids, labels = list(sequence.input_ids), list(sequence.labels)
        text = tokenizer.decode([label for label in labels if label != IGNORE])
        asked = tokenizer.decode([id for id, label in zip(ids, labels, strict=True) if label == IGNORE])
        for message in row.messages:
            calls += len(message.tool_calls)
            assert all(call.name in text for call in message.tool_calls)
            assert message.role != "tool" or message.content in asked
        assert all(tool["name"] in asked for tool in row.tools)
    assert calls > 20
