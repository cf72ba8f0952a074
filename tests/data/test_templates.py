"""Named templates render what LLaMA-Factory renders, in the golden conversations and, by the same rule, in others; and what is trained."""

import json
import logging
import pickle

import pytest
from transformers import AutoTokenizer

from ltune.data.openai_messages import to_openai, wrapped
from ltune.data.rows import Message, ToolCall
from ltune.data.sources import QUICKSTART
from ltune.data.template_files import named, names
from ltune.data.templates import Segment, Template, load_template, try_out
from ltune.errors import UsageError

CASES = {
    "single": [("user", "hi"), ("assistant", "Hello! 你好")],
    "system": [("system", "You are terse."), ("user", "hi"), ("assistant", "Hello!")],
    "multi": [
        ("system", "You are terse."), ("user", "  What is 2+2?\n"), ("assistant", "4"), ("user", "And 3+3?"), ("assistant", " 6 \n"),
    ],
}  # fmt: skip
# (system, questions and answers): as no golden case has them
OTHERS = {
    "three turns": ("Be kind.", ["one", "1", "two", "2", "three", "3"]),
    "an empty answer": (None, ["a", "", "b", "c"]),
    "white space": (" \n system \t", ["\n\n a  ", "  \n", "\t", " b"]),
    "markup": (
        "{{ 7 * 7 }} {% if %}",
        ["<b>&amp;</b> {# no #} \\n \"'", "}} <a href='x'>", "</s><think>", "<|im_end|>\n<|im_start|>system"],
    ),
    "other scripts": ("שלום", ["नमस्ते", "مرحبا", "日本語 🙂", "ру́сский\u200d"]),
}
TOOLS = ({"name": "look_up", "description": "Finds", "parameters": {"type": "object", "properties": {"word": {"type": "string"}}}},)
CALLING = [
    Message("system", "You are terse."),
    Message("user", "hi"),
    Message("assistant", "", tool_calls=(ToolCall("look_up", {"word": 'a "b" 你'}),)),
    Message("tool", '{"found": true}'),
    Message("assistant", "yes"),
]
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}|{% endgeneration %}"
    "{% else %}{{ m.content }}>{% endif %}{% endfor %}"
)
PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }};{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
# As Qwen 3 has it: reasoning only after the last question, and a sign that there is none
FORGETFUL = (
    "{% set ns = namespace(asked=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.asked = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}[{{ m.role }}]"
    "{% if m.role == 'assistant' and loop.index0 > ns.asked %}<think>{{ m.reasoning_content or '' }}</think>{% endif %}"
    "{{ m.content }};{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def messages(case):
    return [Message(role, content) for role, content in case]


def shown(segments):
    """With what is trained between brackets."""
    return "".join(f"⟦{segment.text}⟧" if segment.trained else segment.text for segment in segments)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(str(QUICKSTART.parent / "tiny"))


@pytest.fixture
def own():
    """A tokenizer with this chat template."""

    def make(source):
        tokenizer = AutoTokenizer.from_pretrained(str(QUICKSTART.parent / "tiny"))
        tokenizer.chat_template = source
        return tokenizer

    return make


@pytest.fixture(scope="module")
def golden(shared):
    return json.loads((shared / "golden" / "templates.json").read_text())


def load(name, tokenizer):
    file = named(name)
    return Template(name, file.source, tokenizer.special_tokens_map, file.facts.default_system, file.facts.stop_words)


# -- the named ones -------------------------------------------------------------------------------------------------------------------


def test_all_golden_names_are_there(golden):
    assert sorted(golden) == list(names())
    assert len(names()) == 119


@pytest.mark.parametrize("name", names())
def test_named_templates_render_the_golden_text(golden, tokenizer, name):
    template = load(name, tokenizer)
    for case, turns in golden[name]["cases"].items():
        assert template.render(messages(CASES[case])) == segments(turns, tokenizer), case
    assert template.default_system == golden[name].get("default_system")
    assert list(template.stop_words) == golden[name]["stop_words"]


@pytest.mark.parametrize("name", names())
def test_other_conversations_follow_the_rule_of_the_golden_ones(golden, tokenizer, name):
    template = load(name, tokenizer)
    for case, (system, turns) in OTHERS.items():
        spoken = [("system", system)] if system else []
        spoken += [("assistant" if number % 2 else "user", content) for number, content in enumerate(turns)]
        assert template.render(messages(spoken)) == segments(by_rule(golden[name], system, turns), tokenizer), case


def segments(turns, tokenizer):
    pieces = [(text, trained) for turn in turns for text, trained in zip(turn, (False, True), strict=True)]
    texts = [(text.replace("<BOS>", tokenizer.bos_token).replace("<EOS>", tokenizer.eos_token), trained) for text, trained in pieces]
    return [Segment(text, trained) for text, trained in texts if text]


def by_rule(golden, system, turns):
    """[prompt, answer] of each turn, as the golden cases have what stands around the words."""
    later, answer = (text.split(words) for text, words in zip(golden["cases"]["multi"][1], ("And 3+3?", " 6 \n"), strict=True))
    first = golden["cases"]["system" if system else "single"][0][0]
    before, _, after = first.rpartition("hi")
    assert after == later[1]
    before = before.replace("You are terse.", system) if system else before
    prompts = [[before, after], *[later] * (len(turns) // 2 - 1)]
    return [[turns[2 * n].join(prompts[n]), turns[2 * n + 1].join(answer)] for n in range(len(prompts))]


def test_the_generation_prompt_is_how_the_answer_is_led_in(tokenizer):
    templates = [(load_template(None, tokenizer), messages(CASES["multi"]), ())]
    for template in (load(name, tokenizer) for name in names()):
        templates += [(template, messages(CASES["multi"]), ()), (template, CALLING[:3], TOOLS)]
    for template, conversation, tools in templates:
        whole = template.render(conversation, tools=tools)
        asked = template.render(conversation[:-1], add_generation_prompt=True, tools=tools)
        answer = [number for number, segment in enumerate(whole) if segment.trained][-1]
        assert "".join(s.text for s in asked) == "".join(s.text for s in whole[:answer]), template.name


@pytest.mark.parametrize("name", names())
def test_what_is_saved_renders_the_same_elsewhere(tmp_path, tokenizer, name):
    template = load(name, tokenizer)
    (tmp_path / "saved.jinja").write_text(template.source)
    again = load_template(str(tmp_path / "saved.jinja"), tokenizer)
    assert (again.source, again.default_system, again.stop_words) == (template.source, template.default_system, template.stop_words)
    reasoned = [Message("user", "a"), Message("assistant", "b", reasoning="c"), Message("user", "d"), Message("assistant", "e")]
    for conversation, tools in ((messages(CASES["single"]), ()), (messages(CASES["multi"]), ()), (CALLING[1:], TOOLS), (reasoned, ())):
        mine = "".join(segment.text for segment in template.render(conversation, tools=tools))
        knows = "reasoning_content" in template.source
        assert mine == tokenizer.apply_chat_template(
            to_openai(conversation, knows), tools=wrapped(tools), chat_template=template.source, tokenize=False
        )


def test_roles_out_of_place_are_refused(tokenizer):
    spoken = messages([("user", "a"), ("assistant", "b"), ("system", "c"), ("user", "d"), ("assistant", "e")])
    for name in names():
        with pytest.raises(UsageError, match="the roles are system .only at the beginning., user, assistant and tool, not system") as error:
            load(name, tokenizer).render(spoken)
        assert len(str(error.value).splitlines()) <= 5


def test_without_a_beginning_token_there_is_none():
    template = Template("llama2", named("llama2").source, {"eos_token": "</s>"})
    assert shown(template.render(messages(CASES["single"]))) == "[INST] hi [/INST]⟦Hello! 你好</s>⟧"


# -- loading --------------------------------------------------------------------------------------------------------------------------


def test_the_tokenizers_own_template_with_its_marks(tokenizer):
    template = load_template(None, tokenizer)
    assert template.source == tokenizer.chat_template
    assert [segment for segment in template.render(messages(CASES["system"])) if segment.trained] == [Segment("Hello!<|end|>", True)]
    assert template.stop_ids(tokenizer) == {tokenizer.convert_tokens_to_ids("<|end|>")}


def test_stop_ids_are_the_end_token_and_the_stop_words_that_are_tokens(shared):
    llama = AutoTokenizer.from_pretrained(str(shared / "golden" / "runs" / "model"))
    assert load_template("llama3", llama).stop_ids(llama) == {4, 5}


def test_a_file_of_ones_own(tmp_path, tokenizer):
    (tmp_path / "mine.jinja").write_text("{# stop_words: ['<|end|>'] #}" + MARKED)
    template = load_template(str(tmp_path / "mine.jinja"), tokenizer)
    assert template.stop_words == ("<|end|>",)
    assert template.render(messages(CASES["single"])) == [Segment("hi>", False), Segment("Hello! 你好|", True)]


def refusal(name, tokenizer):
    with pytest.raises(UsageError) as error:
        load_template(name, tokenizer)
    assert len(str(error.value).splitlines()) <= 5
    return str(error.value)


def test_an_unknown_name_says_what_it_may_have_meant(tokenizer, tmp_path):
    assert "Did you mean llama3?" in refusal("lama3", tokenizer)
    assert "no file" in refusal(str(tmp_path / "gone.jinja"), tokenizer)


def test_a_tokenizer_without_template_is_refused(own):
    assert "has none" in refusal(None, own(None))


def test_marks_in_the_wrong_place_are_refused(tmp_path, tokenizer):
    (tmp_path / "wrong.jinja").write_text("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}")
    assert "do not stand around" in refusal(str(tmp_path / "wrong.jinja"), tokenizer)
    macro = (
        "{% macro m(x) %}{% generation %}{{ x }}{% endgeneration %}{% endmacro %}{% for m_ in messages %}{{ m(m_.content) }}{% endfor %}"
    )
    (tmp_path / "wrong.jinja").write_text(macro)
    assert "outside macros" in refusal(str(tmp_path / "wrong.jinja"), tokenizer)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ raise_exception('not today') }}", "not today"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "is stopped: it is not done after 1 s"),
        ("{{ 'a' * 10**9 }}", "is stopped: it computes something huge"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{{ 'a' * 99999 }}{% endfor %}{% endfor %}", "is stopped: it writes more"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{% for m in messages %}", "Unexpected end of template"),
        ("the same whatever is said", "does not preserve prefixes|answers do not show|leaves out what the"),
    ],
)
def test_templates_that_cannot_be_trusted_are_refused(tmp_path, tokenizer, own, source, said):
    (tmp_path / "bad.jinja").write_text(source)
    for message in (refusal(str(tmp_path / "bad.jinja"), tokenizer), refusal(None, own(source))):
        assert any(part in message for part in said.split("|"))


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('not today') }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ eos_token }}{% endfor %}{% endfor %}",
        "{{ bos_token * 10**9 }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ eos_token }}",
        "{% for m in messages %}",
    ],
)
def test_what_a_file_does_wrong_is_told_without_a_tokenizer_in_the_same_words(tmp_path, tokenizer, source):
    (tmp_path / "bad.jinja").write_text(source)
    with pytest.raises(UsageError) as caught:
        try_out(str(tmp_path / "bad.jinja"))
    assert str(caught.value) == refusal(str(tmp_path / "bad.jinja"), tokenizer)


@pytest.mark.parametrize(
    "source",
    [
        "{{ bos_token + eos_token }}{% for m in messages %}{{ m.role + m.content }}{% endfor %}",
        "{% if eos_token != '<|im_end|>' %}{{ raise_exception('for another model') }}{% endif %}{{ messages[0].content }}",
        "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    ],
)
def test_what_depends_on_the_tokenizer_is_left_for_later(tmp_path, source):
    (tmp_path / "own.jinja").write_text(source)
    assert try_out(str(tmp_path / "own.jinja")) is None  # it raises where the template is refused


def test_a_row_that_a_template_chokes_on_is_refused(tokenizer):
    template = Template("odd", MARKED + "{% if messages[0].content == 'boom' %}{% for a in range(99999) %}{% for b in range(99999) %}"
                        "{% endfor %}{% endfor %}{% endif %}")  # fmt: skip
    assert template.render(messages(CASES["single"]))
    with pytest.raises(UsageError, match="not done after 1 s"):
        template.render([Message("user", "boom"), Message("assistant", "a")])
    assert template.render(messages(CASES["single"]))


def test_rows_are_the_same_tomorrow(tokenizer):
    template = Template("dated", "{{ strftime_now('%d %b %Y') }}\n" + MARKED)
    assert template.render(messages(CASES["single"]))[0] == Segment("26 Jul 2024\nhi>", False)
    assert "Today Date: 26 Jul 2024\n" in load("llama3", tokenizer).render(CALLING, tools=TOOLS)[0].text


def test_where_it_first_differs_from_the_tokenizers_own_is_one_line(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        load_template("llama3", tokenizer)
    lines = [record.getMessage() for record in caplog.records]
    assert len([line for line in lines if "\n" in line]) == 0
    assert lines[1] == (
        "template llama3 is not the tokenizer's own: from character 9 on it writes "
        "'<|bos|><|start_header_id|>user<|end_hea...', the tokenizer's own '<|bos|><|user|>\\nfirst question<|end|>\\n<...'"
    )
    assert "spelled out in ordinary tokens" in caplog.text  # <|eot_id|> is no token of the tiny model


def test_a_template_without_ends_is_reported(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        load_template("solar", tokenizer)
    assert "template solar writes nothing after the last answer" in caplog.text


def test_it_can_be_sent_to_another_process(tokenizer):
    template = load_template("qwen", tokenizer)
    assert pickle.loads(pickle.dumps(template)).render(messages(CASES["multi"])) == template.render(messages(CASES["multi"]))


# -- without marks --------------------------------------------------------------------------------------------------------------------


def test_without_marks_the_answer_is_what_is_added(own):
    template = load_template(None, own(PLAIN))
    assert shown(template.render(messages(CASES["single"]))) == "[user]hi;[assistant]⟦Hello! 你好;⟧"
    assert shown(template.render(messages(CASES["multi"]))) == (
        "[system]You are terse.;[user]  What is 2+2?\n;[assistant]⟦4;⟧[user]And 3+3?;[assistant]⟦ 6 \n;⟧"
    )
    assert shown(template.render(CALLING_PLAIN)) == "[user]a;[assistant]⟦b;⟧[tool]c;[assistant]⟦d;⟧"


CALLING_PLAIN = messages([("user", "a"), ("assistant", "b"), ("tool", "c"), ("assistant", "d")])


def test_before_an_answer_nothing_needs_to_be_told(own):
    template = load_template(None, own(FORGETFUL))
    asked = template.render(messages(CASES["multi"][:-1]), add_generation_prompt=True)
    assert "".join(segment.text for segment in asked) == (
        "[system]You are terse.;[user]  What is 2+2?\n;[assistant]4;[user]And 3+3?;[assistant]"
    )


def test_a_template_that_writes_earlier_answers_anew_is_refused_unless_told(own):
    template = load_template(None, own(FORGETFUL))
    assert shown(template.render(messages(CASES["single"]))) == "[user]hi;[assistant]⟦<think></think>Hello! 你好;⟧"
    with pytest.raises(UsageError, match="does not preserve prefixes") as error:
        template.render(messages(CASES["multi"]))
    assert "Around message 3 it writes '<think></think>4;', and '4;[user]And 3+3?;" in str(error.value)
    assert "--data.reasoning drop_history" in str(error.value)
    assert len(str(error.value).splitlines()) <= 5
    told = load_template(None, own(FORGETFUL), "drop_history")
    assert shown(told.render(messages(CASES["multi"]))) == (
        "[system]You are terse.;[user]  What is 2+2?\n;[assistant]4;[user]And 3+3?;[assistant]⟦<think></think> 6 \n;⟧"
    )


def test_an_end_token_after_the_whole_conversation(own):
    source = PLAIN.replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}")
    template = load_template(None, own(source))
    assert shown(template.render(messages(CASES["multi"][1:]))) == (
        "[user]  What is 2+2?\n;[assistant]⟦4;⟧[user]And 3+3?;[assistant]⟦ 6 \n;<|end|>⟧"
    )
    # Where it is all that ends an answer, an earlier one would be trained without an end
    with pytest.raises(UsageError, match="does not preserve prefixes"):
        load_template(None, own(source.replace("{{ m.content }};", "{{ m.content }}"))).render(messages(CASES["multi"][1:]))


def test_a_template_that_leads_every_answer_in_with_reasoning(own):
    source = (
        "{% for m in messages %}[{{ m.role }}]{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
        "{{ m.content }};{% endfor %}{% if add_generation_prompt %}[assistant]<think>{% endif %}"
    )
    template = load_template(None, own(source))
    assert (
        shown(template.render([Message("user", "a"), Message("assistant", "b", reasoning="c")]))
        == "[user]a;[assistant]<think>⟦c</think>b;⟧"
    )
    with pytest.raises(UsageError, match="does not preserve prefixes"):
        template.render(messages(CASES["single"]))


def test_a_template_that_wants_arguments_as_text(own):
    call = "{% for c in m.tool_calls or [] %}{{ c.function.name + c.function.arguments }}{% endfor %};"
    template = load_template(None, own(PLAIN.replace(";", call)))
    assert shown(template.render(CALLING[1:4])) == '[user]hi;[assistant]⟦look_up{"word": "a \\"b\\" 你"};⟧[tool]{"found": true};'


def test_what_a_template_leaves_out_is_said(own, tokenizer):
    deaf = PLAIN.replace("in messages", "in messages if m.role != 'system'")
    template = load_template(None, own(deaf))
    with pytest.raises(UsageError, match="leaves out the system text"):
        template.render(messages(CASES["system"]))
    with pytest.raises(UsageError, match="leaves out the tools"):
        template.render(messages(CASES["single"]), tools=TOOLS)
    with pytest.raises(UsageError, match="leaves out a tool call"):
        template.render(CALLING[1:])


@pytest.mark.parametrize(
    ("role", "source"),
    [
        ("user", PLAIN.replace("m.content", "m.content[:4] if m.role == 'user' else m.content")),
        ("assistant", MARKED.replace("m.content }}|", "m.content[:1] }}|")),
        ("tool", PLAIN.replace("m.content", "'' if m.role == 'tool' else m.content")),
    ],
)
def test_a_template_that_leaves_out_what_somebody_says_is_refused(own, role, source):
    said = [Message("user", "a long one"), Message("assistant", "an answer"), Message("tool", "result"), Message("assistant", "done it")]
    with pytest.raises(UsageError, match=f"leaves out what the {role} says"):
        load_template(None, own(source)).render(said)


def test_rows_with_tools_are_told_of_a_template_that_knows_them(tokenizer):
    with pytest.raises(UsageError, match="not tool\nFor rows with tools choose one that knows them, for example  --data.template qwen"):
        load_template(None, tokenizer).render(CALLING)
