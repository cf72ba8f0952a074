"""Named templates render what LLaMA-Factory renders; a template that does not say what is trained is refused."""

import json
import logging

import pytest
from transformers import AutoTokenizer

from ltune.data.rows import Message
from ltune.data.sources import QUICKSTART
from ltune.data.templates import Segment, Template, load_template
from ltune.errors import UsageError

CASES = {
    "single": [("user", "hi"), ("assistant", "Hello! 你好")],
    "system": [("system", "You are terse."), ("user", "hi"), ("assistant", "Hello!")],
    "multi": [
        ("system", "You are terse."), ("user", "  What is 2+2?\n"), ("assistant", "4"), ("user", "And 3+3?"), ("assistant", " 6 \n"),
    ],
}  # fmt: skip
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}|{% endgeneration %}"
    "{% else %}{{ m.content }}>{% endif %}{% endfor %}"
)


def messages(case):
    return [Message(role, content) for role, content in case]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(str(QUICKSTART.parent / "tiny"))


@pytest.mark.parametrize("name", ["llama3", "chatml", "qwen", "mistral"])
@pytest.mark.parametrize("case", CASES)
def test_named_templates_render_the_golden_text(shared, tokenizer, name, case):
    golden = json.loads((shared / "golden" / "templates.json").read_text())[name]
    template = load_template(name, tokenizer)
    expected = []
    for prompt, answer in golden["cases"][case]:
        for text, trained in ((prompt, False), (answer, True)):
            expected.append(Segment(text.replace("<BOS>", tokenizer.bos_token).replace("<EOS>", tokenizer.eos_token), trained))
    assert template.render(messages(CASES[case])) == expected
    assert template.default_system == golden.get("default_system")
    assert list(template.stop_words) == golden["stop_words"]


@pytest.mark.parametrize("name", ["llama3", "chatml", "qwen", "mistral", None])
def test_the_generation_prompt_is_how_the_answer_is_led_in(tokenizer, name):
    template = load_template(name, tokenizer)
    whole = template.render(messages(CASES["multi"]))
    asked = template.render(messages(CASES["multi"][:-1]), add_generation_prompt=True)
    answer = [number for number, segment in enumerate(whole) if segment.trained][-1]
    assert "".join(s.text for s in asked) == "".join(s.text for s in whole[:answer])


def test_the_tokenizers_own_template_with_its_marks(tokenizer):
    template = load_template(None, tokenizer)
    assert template.source == tokenizer.chat_template
    assert [segment for segment in template.render(messages(CASES["system"])) if segment.trained] == [Segment("Hello!<|end|>", True)]
    assert template.stop_ids(tokenizer) == {tokenizer.convert_tokens_to_ids("<|end|>")}


def test_stop_ids_are_the_end_token_and_the_stop_words_that_are_tokens(shared):
    llama = AutoTokenizer.from_pretrained(str(shared / "golden" / "runs" / "model"))
    assert load_template("llama3", llama).stop_ids(llama) == {4, 5}


def test_what_is_saved_renders_the_same_from_its_file(tmp_path, tokenizer):
    qwen = load_template("qwen", tokenizer)
    (tmp_path / "saved.jinja").write_text(qwen.source)
    again = load_template(str(tmp_path / "saved.jinja"), tokenizer)
    assert again.source == qwen.source
    assert again.render(messages(CASES["single"])) == qwen.render(messages(CASES["single"]))
    plain = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], chat_template=qwen.source, tokenize=False)
    assert "You are Qwen, created by Alibaba Cloud." in plain


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


def test_a_tokenizer_without_template_or_a_template_without_marks_is_refused():
    tokenizer = AutoTokenizer.from_pretrained(str(QUICKSTART.parent / "tiny"))
    tokenizer.chat_template = None
    assert "has none" in refusal(None, tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert "{% generation %}" in refusal(None, tokenizer)


def test_marks_in_the_wrong_place_are_refused(tmp_path, tokenizer):
    (tmp_path / "wrong.jinja").write_text("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}")
    assert "do not stand around" in refusal(str(tmp_path / "wrong.jinja"), tokenizer)


def test_what_a_template_refuses_is_said(tokenizer):
    with pytest.raises(UsageError, match="knows system, user and assistant, not tool"):
        load_template("llama3", tokenizer).render([Message("tool", "x")])


def test_rows_are_the_same_tomorrow():
    template = Template("dated", "{{ strftime_now('%d %b %Y') }}\n" + MARKED)
    assert template.render(messages(CASES["single"]))[0] == Segment("26 Jul 2024\nhi>", False)


def test_drift_from_the_tokenizers_own_template_is_reported(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        load_template("llama3", tokenizer)
    assert "template llama3 is not the tokenizer's own" in caplog.text
    assert "spelled out in ordinary tokens" in caplog.text  # <|eot_id|> is no token of the tiny model
