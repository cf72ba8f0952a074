"""What holds for any conversation, template and truncation: labels are exactly the trained text, the text comes back, lengths hold."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltune.data.encode import Dropped, Encoder
from ltune.data.rows import IGNORE, Chat, Message, Pair
from ltune.data.templates import load_template
from ltune.models.tokenizer import load_tokenizer

TEMPLATES = ["llama3", "chatml", "qwen", "mistral"]
ENDS = {"llama3": "<|eot_id|>", "chatml": "<|im_end|>", "qwen": "<|im_end|>", "mistral": "<|end|>"}
ADDED = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>"]
TOKENIZER = load_tokenizer("tiny")
TOKENIZER.add_special_tokens({"additional_special_tokens": ADDED})
TOKENIZER.add_tokens(["<think>", "[INST]", "[/INST]"])
CONTROL = set(TOKENIZER.added_tokens_decoder)

spellings = st.sampled_from([*ADDED, "<think>", "[INST]", "<|end|>", "<|eot", "_id|>", "[/INS", "  ", "\n\n", "\r\n", "\t", "\U00100001"])
words = st.text(st.sampled_from("abc THE fox.\n\té你🦊") | st.characters(exclude_categories=["Cs"]), max_size=30)
texts = st.lists(words | spellings, max_size=4).map("".join)
systems = st.none() | texts.filter(str.strip)


@st.composite
def conversations(draw, longest=4):
    turns = draw(st.lists(st.tuples(texts, texts), min_size=1, max_size=longest))
    system = draw(systems)
    first = () if system is None else (Message("system", system),)
    return Chat("here:1", first + tuple(message for turn in turns for message in (Message("user", turn[0]), Message("assistant", turn[1]))))


@cache
def encoder(template, max_length=100_000, **options):
    return Encoder(load_template(template, TOKENIZER), TOKENIZER, max_length=max_length, **options)


def decode(ids):
    return TOKENIZER.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def check(sequence, max_length):
    """What must hold of any sequence."""
    ids, labels = sequence.input_ids.tolist(), sequence.labels.tolist()
    assert len(ids) == len(labels) <= max_length
    assert labels[0] == IGNORE
    assert all(label in (IGNORE, id) for id, label in zip(ids, labels, strict=True))
    assert any(label != IGNORE for label in labels)
    return ids, [label for label in labels if label != IGNORE]


def control_ids(ids):
    return [id for id in ids if id in CONTROL]


@pytest.mark.parametrize("template", TEMPLATES)
@settings(max_examples=40, deadline=None)
@given(row=conversations(), train_on=st.sampled_from(["assistant", "last", "all"]))
def test_the_text_comes_back_and_labels_are_the_trained_text(template, row, train_on):
    made = encoder(template, train_on=train_on).process(row)
    ids, trained = check(made.sequences[0], 100_000)
    segments = load_template_once(template).render(row.messages)
    assert decode(ids) == "".join(segment.text for segment in segments)
    answers = [segment.text for segment in segments if segment.trained]
    expected = {"assistant": "".join(answers), "last": answers[-1], "all": decode(ids[1:])}[train_on]
    assert decode(trained) == expected
    plain = Chat(row.place, tuple(Message(message.role, "x" if message.content else "") for message in row.messages))
    assert control_ids(ids) == control_ids(encoder(template).encode(plain)[0].input_ids.tolist())


@cache
def load_template_once(template):
    return load_template(template, TOKENIZER)


@pytest.mark.parametrize("truncation", ["left", "drop", "split", "llamafactory"])
@pytest.mark.parametrize("template", TEMPLATES)
@settings(max_examples=25, deadline=None)
@given(row=conversations(), max_length=st.integers(2, 120), train_on=st.sampled_from(["assistant", "last", "all"]))
def test_lengths_hold_and_answers_stay_whole(template, truncation, row, max_length, train_on):
    made = encoder(template, truncation=truncation, train_on=train_on)
    made.max_length = made.shortener.max_length = max_length  # cheaper than a new one
    outcome = made.process(row)
    if isinstance(outcome, Dropped):
        return
    whole = encoder(template, train_on=train_on).process(row).sequences[0]
    answers = "".join(segment.text for segment in load_template_once(template).render(row.messages) if segment.trained)
    for sequence in outcome.sequences:
        ids, trained = check(sequence, max_length)
        if truncation != "llamafactory" and train_on != "all":
            assert decode(trained) in answers
            # Only a tail, which is not trained, may come after the end of an answer
            assert ENDS[template] in decode(trained)
            assert sequence.labels[-1] != IGNORE
    assert outcome.control_tokens == made.tokens.found_in(message.content for message in row.messages)
    if not outcome.truncated and not outcome.split:
        assert outcome.sequences[0].input_ids.tolist() == whole.input_ids.tolist()
    if outcome.split and not outcome.truncated and train_on == "assistant":
        assert "".join(decode(check(one, max_length)[1]) for one in outcome.sequences) == answers


@pytest.mark.parametrize("truncation", ["left", "drop", "split", "llamafactory"])
@settings(max_examples=25, deadline=None)
@given(row=conversations(longest=2), other=texts, max_length=st.integers(2, 120))
def test_both_answers_of_a_pair_stand_after_the_same_prompt(truncation, row, other, max_length):
    *before, chosen = row.messages
    made = encoder("llama3", truncation=truncation)
    made.max_length = made.shortener.max_length = max_length
    outcome = made.process(Pair("here:1", tuple(before), chosen, Message("assistant", other)))
    if isinstance(outcome, Dropped):
        return
    prompts = []
    for sequence, text in zip(outcome.sequences, (chosen.content, other), strict=True):
        ids, trained = check(sequence, max_length)
        prompts.append(ids[: len(ids) - len(trained)])
        if truncation != "llamafactory":
            assert decode(trained) == f"{text}<|eot_id|>"
    assert prompts[0] == prompts[1]
