"""What a token weighs follows from whose text it is; ids stay as they are without weights."""

import numpy as np
import pytest

from ltune.data.encode import Dropped, Encoder
from ltune.data.roles import ROLES
from ltune.data.rows import IGNORE, BadRow, Chat, Message, ToolCall
from ltune.data.templates import Template, load_template
from ltune.errors import UsageError
from ltune.models.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer("tiny")
TOKENIZER.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
EACH = {role: float(number + 1) for number, role in enumerate(ROLES)}  # so that a weight tells the role
ROW = Chat(
    "here:1",
    (
        Message("system", "Be quick <|im_end|>."),  # spells a control token
        Message("user", "What is in é 🦊?"),
        Message("assistant", "", tool_calls=(ToolCall("look", {"at": "the fox"}),)),
        Message("tool", "a tail of the fox"),
        Message("assistant", "A tail."),
        Message("user", "  And?  "),
        Message("assistant", "Nothing."),
    ),
    tools=({"name": "look", "description": "x", "parameters": {"type": "object", "properties": {}}},),
)
PLAIN = Chat("here:2", tuple(message for message in (ROW.messages[1], *ROW.messages[4:])))


def encoder(template="qwen", weights=EACH, train_on="all", max_length=10_000, **options):
    found = template if isinstance(template, Template) else load_template(template, TOKENIZER)
    return Encoder(found, TOKENIZER, max_length, train_on=train_on, weights=weights, **options)


def texts_by_role(row, **options):
    """{role: [text of each stretch]} of the only sequence, whose first token alone has no weight."""
    (sequence,) = encoder(**options).encode(row)
    ids, weights = np.asarray(sequence.input_ids)[1:], sequence.extras["weight"]
    assert len(ids) == len(weights)
    borders = np.flatnonzero(np.diff(weights)) + 1
    found = {role: [] for role in ROLES}
    for part, weight in zip(np.split(ids, borders), np.split(weights, borders), strict=True):
        found[ROLES[int(weight[0]) - 1]].append(TOKENIZER.decode(part, skip_special_tokens=False))
    return found


def test_each_text_has_its_role():
    found = texts_by_role(ROW)
    assert found["system"] == ["Be quick <|im_end|>."]
    assert [text.strip() for text in found["user"]] == ["What is in é 🦊?", "And?"]  # white space around a text may be the template's
    assert found["tool"] == ["a tail of the fox"]
    assert [text.count("<|im_end|>") for text in found["assistant"]] == [1, 1, 1]
    assert "look" in found["assistant"][0]
    assert any("<|im_start|>" in text for text in found["template"])


@pytest.mark.parametrize("template", ["qwen", "llama3", "mistral", "alpaca", "vicuna"])
@pytest.mark.parametrize("truncation", ["left", "llamafactory", "split"])
def test_weights_change_no_id_and_no_truncation(template, truncation):
    for row in (PLAIN, Chat("long:1", PLAIN.messages * 4)):
        options = {"template": template, "truncation": truncation, "max_length": 60}
        plain = encoder(weights=None, **options).encode(row)
        weighed = encoder(**options).encode(row)
        assert len(plain) == len(weighed) >= 1
        for one, other in zip(plain, weighed, strict=True):
            assert np.array_equal(one.input_ids, other.input_ids)
            assert np.array_equal(one.labels, other.labels)
            assert other.input_ids.dtype == other.labels.dtype == np.int32
            assert len(other.extras["weight"]) == np.count_nonzero(other.labels != IGNORE)


def test_the_rest_of_a_text_that_was_cut_keeps_its_role():
    row = Chat("here:3", (Message("user", "the quick brown fox " * 30), Message("assistant", "yes")))
    found = texts_by_role(row, max_length=50)
    (text,) = found["user"]
    assert len(text) > 30
    assert ("the quick brown fox " * 30).strip().endswith(text.strip())
    assert [answer.strip() for answer in found["assistant"]] == ["yes<|im_end|>"]


def test_only_answers_weigh_where_only_they_are_trained():
    (sequence,) = encoder(weights={"assistant": 0.5, "user": 0}, train_on="assistant").encode(PLAIN)
    assert set(sequence.extras["weight"].tolist()) == {0.5}
    assert np.array_equal(sequence.labels, encoder(weights=None, train_on="assistant").encode(PLAIN)[0].labels)


def test_what_weighs_nothing_is_not_trained():
    weights = {"template": 0, "user": 0, "system": 0, "tool": 0}
    for train_on in ("all", "assistant"):
        (sequence,) = encoder(weights=weights, train_on=train_on).encode(PLAIN)
        assert np.array_equal(sequence.labels, encoder(weights=None, train_on="assistant").encode(PLAIN)[0].labels)
    assert isinstance(encoder(weights=dict.fromkeys(ROLES, 0)).encode(PLAIN), Dropped)


def test_a_template_that_looks_into_texts_is_told():
    source = "{% for m in messages %}{{ '(' if m.content.startswith('What') else '[' }}{{ m.role }}{{ m.content }}{% endfor %}"
    source = source.replace("{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}")
    with pytest.raises(BadRow, match=r"the roles of its tokens cannot be told"):
        encoder(Template("curious", source)).encode(PLAIN)


@pytest.mark.parametrize(
    ("weights", "train_on", "said"),
    [
        ({"asistant": 1}, "all", "no role asistant"),
        ({"user": -1}, "all", "0 or more"),
        ({"user": float("nan")}, "all", "0 or more"),
        ({"user": 0.1}, "assistant", "data.train_on: all"),
        ({"tool": 1}, "last", "data.train_on: all"),
    ],
)
def test_weights_that_cannot_be(weights, train_on, said):
    with pytest.raises(UsageError, match=said):
        encoder(weights=weights, train_on=train_on)
