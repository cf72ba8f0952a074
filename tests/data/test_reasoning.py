"""Reasoning is trained, dropped from earlier answers, masked or dropped, and written as the template's family does it."""

import pytest
from transformers import AutoTokenizer

from ltune.data.openai_messages import to_openai
from ltune.data.rows import Message, ToolCall
from ltune.data.sources import QUICKSTART
from ltune.data.template_files import named, names
from ltune.data.templates import Template, load_template
from ltune.errors import UsageError

TALK = [
    Message("user", "q1"),
    Message("assistant", "a1", reasoning="r1"),
    Message("user", "q2"),
    Message("assistant", "a2", reasoning="\nr2\n"),
]
BARE = [Message(message.role, message.content) for message in TALK]
THINKING = [name for name in names() if named(name).facts.thinking]
# As Qwen 3 has it: reasoning only after the last question, and a sign that there is none
FORGETFUL = (
    "{% set ns = namespace(asked=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.asked = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}[{{ m.role }}]"
    "{% if m.role == 'assistant' and loop.index0 > ns.asked %}<think>{{ m.reasoning_content or '' }}</think>{% endif %}"
    "{{ m.content }};{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(str(QUICKSTART.parent / "tiny"))


@pytest.fixture(scope="module")
def forgetful():
    tokenizer = AutoTokenizer.from_pretrained(str(QUICKSTART.parent / "tiny"))
    tokenizer.chat_template = FORGETFUL
    return tokenizer


def shown(segments):
    """With what is trained between brackets."""
    return "".join(f"⟦{segment.text}⟧" if segment.trained else segment.text for segment in segments)


@pytest.mark.parametrize(
    ("reasoning", "expected"),
    [
        ("keep", "U q1 A ⟦<think>\nr1\n</think>\n\na1 E⟧U q2 A ⟦<think>\nr2\n</think>\n\na2 E⟧"),
        ("mask", "U q1 A <think>\nr1\n</think>\n\n⟦a1 E⟧U q2 A <think>\nr2\n</think>\n\n⟦a2 E⟧"),
        ("drop_history", "U q1 A a1 EU q2 A ⟦<think>\nr2\n</think>\n\na2 E⟧"),
        ("drop", "U q1 A ⟦<think>\n\n</think>\n\na1 E⟧U q2 A ⟦<think>\n\n</think>\n\na2 E⟧"),
    ],
)
def test_a_thinking_template(tokenizer, reasoning, expected):
    text = shown(load_template("qwen3", tokenizer, reasoning).render(TALK))
    signs = {"<|im_start|>user\n": "U ", "<|im_start|>assistant\n": " A ", "<|im_end|>\n": " E"}
    for sign, short in signs.items():
        text = text.replace(sign, short)
    assert text.replace(" E A ", " A ") == expected


@pytest.mark.parametrize(
    ("reasoning", "expected"),
    [
        ("keep", ">q1:⟦<think>\nr1\n</think>\n\na1|⟧>q2:⟦<think>\nr2\n</think>\n\na2|⟧"),
        ("mask", ">q1:<think>\nr1\n</think>\n\n⟦a1|⟧>q2:<think>\nr2\n</think>\n\n⟦a2|⟧"),
        ("drop_history", ">q1:a1|>q2:⟦<think>\nr2\n</think>\n\na2|⟧"),
        ("drop", ">q1:⟦a1|⟧>q2:⟦a2|⟧"),
    ],
)
@pytest.mark.parametrize("marks", [True, False])
def test_a_template_that_knows_nothing_of_reasoning(reasoning, expected, marks):
    source = (
        "{% for m in messages %}{% if m.role == 'assistant' %}:{% generation %}{{ m.content }}|{% endgeneration %}"
        "{% else %}>{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}:{% endif %}"
    )
    source = source if marks else source.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    assert shown(Template("plain", source, reasoning=reasoning).render(TALK)) == expected


@pytest.mark.parametrize("name", THINKING)
def test_without_reasoning_keep_mask_and_drop_are_the_same(tokenizer, name):
    made = [load_template(name, tokenizer, reasoning).render(BARE) for reasoning in ("keep", "mask", "drop")]
    assert made[0] == made[1] == made[2]


@pytest.mark.parametrize("name", THINKING)
def test_reasoning_stands_between_the_familys_signs(tokenizer, name):
    template = load_template(name, tokenizer)
    before, after = named(name).facts.thinking
    one, two = (segment.text for segment in template.render(TALK) if segment.trained)
    assert f"{before}r1{after}a1" in one
    assert f"{before}r2{after}a2" in two
    masked = load_template(name, tokenizer, "mask").render(TALK)
    assert "".join(segment.text for segment in masked) == "".join(segment.text for segment in template.render(TALK))
    assert [segment.text[:2] for segment in masked if segment.trained] == ["a1", "a2"]


@pytest.mark.parametrize("name", THINKING)
def test_what_is_saved_forgets_earlier_reasoning_too(tokenizer, tmp_path, name):
    template = load_template(name, tokenizer, "drop_history")
    mine = template.render(TALK)
    assert [segment.text for segment in mine if segment.trained] == [
        segment.text for segment in load_template(name, tokenizer).render(TALK) if segment.trained
    ][1:]
    # Whoever passes earlier reasoning along gets the same text, and so does who does not
    for messages in (TALK, [BARE[0], BARE[1], *TALK[2:]]):
        theirs = tokenizer.apply_chat_template(to_openai(messages, True), chat_template=template.source, tokenize=False)
        assert theirs == "".join(segment.text for segment in mine)
    (tmp_path / "saved.jinja").write_text(template.source)
    assert load_template(str(tmp_path / "saved.jinja"), tokenizer, "drop_history").source == template.source


def test_answers_that_are_not_written_as_they_were_said_are_not_trained(tokenizer, forgetful):
    qwen = load_template("qwen3", tokenizer, "drop_history")
    assert [segment.text for segment in qwen.render(BARE) if segment.trained] == ["<think>\n\n</think>\n\na2<|im_end|>\n"]
    llama = load_template("llama3", tokenizer, "drop_history")  # it writes nothing where there is no reasoning
    assert [segment.text for segment in llama.render(BARE) if segment.trained] == ["a1<|eot_id|>", "a2<|eot_id|>"]
    assert [segment.text for segment in llama.render([*BARE[:2], *TALK[2:]]) if segment.trained][0] == "a1<|eot_id|>"
    own = load_template(None, forgetful, "drop_history")
    assert shown(own.render(TALK)) == "[user]q1;[assistant]a1;[user]q2;[assistant]⟦<think>r2</think>a2;⟧"


def test_reasoning_since_the_last_question_is_kept_between_tool_calls(tokenizer, forgetful):
    call = Message("assistant", "", reasoning="look it up", tool_calls=(ToolCall("look_up", {"word": "q2"}),))
    talk = [*TALK[:3], call, Message("tool", "found"), Message("assistant", "a2", reasoning="so it is")]
    trained = [segment.text for segment in load_template("qwen3", tokenizer, "drop_history").render(talk) if segment.trained]
    assert trained == [
        '<think>\nlook it up\n</think>\n\n<tool_call>\n{"name": "look_up", "arguments": {"word": "q2"}}\n</tool_call><|im_end|>\n',
        "<think>\nso it is\n</think>\n\na2<|im_end|>\n",
    ]
    masked = [segment.text for segment in load_template("qwen3", tokenizer, "mask").render(talk) if segment.trained]
    assert masked[1:] == [trained[0].split("\n\n")[1], "a2<|im_end|>\n"]


def test_reasoning_that_a_template_would_forget_is_an_error(forgetful):
    with pytest.raises(UsageError, match="--data.reasoning drop_history"):
        load_template(None, forgetful).render(TALK)
    marked = FORGETFUL.replace("{{ m.content }};", "{% generation %}{{ m.content }};{% endgeneration %}")
    with pytest.raises(
        UsageError, match="leaves out the reasoning of an answer.\nChoose another  --data.template , or data.reasoning drop"
    ):
        Template("marked", marked).render(TALK)


def test_reasoning_that_a_template_changes_cannot_be_masked():
    source = (
        "{% for m in messages %}>{% generation %}{{ (m.reasoning_content or '') | upper }}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    with pytest.raises(UsageError, match="changes the reasoning, so it cannot be masked"):
        Template("loud", source, reasoning="mask").render(TALK)


@pytest.mark.parametrize("reasoning", ["keep", "mask", "drop_history", "drop"])
def test_before_an_answer_there_is_always_a_prompt(tokenizer, forgetful, reasoning):
    asked = "".join(segment.text for segment in load_template("qwen3", tokenizer, reasoning).render(TALK[:3], add_generation_prompt=True))
    assert asked.endswith("a1<|im_end|>\n<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n")
    own = load_template(None, forgetful, reasoning).render(BARE[:3], add_generation_prompt=True)
    assert "".join(segment.text for segment in own) == "[user]q1;[assistant]a1;[user]q2;[assistant]"


def test_masking_finds_reasoning_that_is_spelled_like_the_signs(tokenizer):
    talk = [Message("user", "q"), Message("assistant", "th", reasoning="th")]
    assert shown(load_template("qwen3", tokenizer, "mask").render(talk)).endswith("<think>\nth\n</think>\n\n⟦th<|im_end|>\n⟧")
