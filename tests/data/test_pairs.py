"""Pairs and rated rows: the last answer alone is trained, and both answers of a pair stand after the same prompt."""

import json

import pytest

from ltune.data.encode import Dropped, Encoder
from ltune.data.pairs import mismatched
from ltune.data.rows import IGNORE, Message, Pair, Rated
from ltune.data.templates import load_template
from ltune.data.truncation import share
from ltune.models.tokenizer import load_tokenizer

TINY = load_tokenizer("tiny")
TEMPLATE = load_template("llama3", TINY)
HISTORY = (Message("user", "hi"), Message("assistant", "hello"), Message("user", "and you?"))
GOOD, BAD = Message("assistant", "I am very well."), Message("assistant", "no")
PAIR = Pair("here:1", HISTORY, GOOD, BAD)


def plain(text):
    return TINY.encode(text, add_special_tokens=False)


def say(role, text):
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>"


# As LLaMA-Factory has it: each turn's prompt and answer tokenised apart
PROMPT = [
    *plain("<|bos|>" + say("user", "hi") + "<|start_header_id|>assistant<|end_header_id|>\n\n"),
    *plain("hello<|eot_id|>"),
    *plain(say("user", "and you?") + "<|start_header_id|>assistant<|end_header_id|>\n\n"),
]
CHOSEN, REJECTED = plain("I am very well.<|eot_id|>"), plain("no<|eot_id|>")


def process(row, max_length=1000, truncation="left", **options):
    return Encoder(TEMPLATE, TINY, max_length=max_length, truncation=truncation, **options).process(row)


def listed(made):
    return [(sequence.input_ids.tolist(), sequence.labels.tolist()) for sequence in made.sequences]


def expected(prompt, answer):
    return prompt + answer, [IGNORE] * len(prompt) + answer


def test_a_pair_is_two_sequences_with_labels_on_the_last_answer_only():
    for train_on in ("assistant", "last", "all"):
        made = process(PAIR, train_on=train_on)
        assert listed(made) == [expected(PROMPT, CHOSEN), expected(PROMPT, REJECTED)]
        assert not made.truncated


def test_a_rated_row_is_one_sequence():
    row = Rated("here:1", HISTORY, BAD, good=False)
    assert listed(process(row)) == [expected(PROMPT, REJECTED)]
    assert [sequence.extras["good"] for sequence in process(row).sequences] == [0]


def test_with_the_answer_of_another_row_it_is_two():
    row = Rated("here:1", HISTORY, BAD, good=False)
    made = process(mismatched(row, Rated("here:2", (), GOOD, good=True)))
    assert listed(made) == [expected(PROMPT, REJECTED), expected(PROMPT, CHOSEN)]
    assert [sequence.extras["good"] for sequence in made.sequences] == [0, 0]


def test_llamafactory_cuts_both_answers_by_the_longer_ones_share():
    for max_length in (20, 30, 60, len(PROMPT) + len(CHOSEN) - 1):
        prompt, answer = share(len(PROMPT), len(CHOSEN), max_length)
        made = process(PAIR, max_length, "llamafactory")
        assert listed(made) == [expected(PROMPT[:prompt], CHOSEN[:answer]), expected(PROMPT[:prompt], REJECTED[:answer])]
        assert made.truncated
        assert made.end_token_cut == (answer < len(CHOSEN)) + (answer < len(REJECTED))


def test_left_shortens_the_prompt_of_both_alike_and_never_an_answer():
    second = plain("<|bos|>" + say("user", "and you?") + "<|start_header_id|>assistant<|end_header_id|>\n\n")
    for truncation in ("left", "split"):
        made = process(PAIR, len(second) + len(CHOSEN), truncation)
        assert listed(made) == [expected(second, CHOSEN), expected(second, REJECTED)]
        assert made.truncated
    made = process(PAIR, len(CHOSEN) + 1)
    assert listed(made) == [expected(plain("<|bos|>"), CHOSEN), expected(plain("<|bos|>"), REJECTED)]
    assert process(PAIR, len(CHOSEN)) == Dropped(f"the answer does not fit in {len(CHOSEN)} tokens")


def test_drop_looks_at_the_longer_answer():
    whole = len(PROMPT) + len(CHOSEN)
    assert listed(process(PAIR, whole, "drop")) == [expected(PROMPT, CHOSEN), expected(PROMPT, REJECTED)]
    assert process(PAIR, whole - 1, "drop") == Dropped(f"longer than {whole - 1} tokens")


def test_what_is_special_is_told():
    made = process(Pair("here:1", (Message("user", "say <|end|>"),), Message("assistant", "<|end|><|bos|>"), Message("assistant", "")))
    assert made.control_tokens == {"<|end|>": 2, "<|bos|>": 1}
    assert made.empty_answer
    assert not process(PAIR).empty_answer


@pytest.mark.parametrize("max_length", [256, 1024])
def test_the_sample_pairs_and_rated_rows_are_cut_as_llamafactory_cuts_them(shared, max_length):
    def ids(text):
        return tokenizer.encode(text, add_special_tokens=False)

    def cut(messages, answers):
        """Rule 13, by hand: turn by turn tokenised apart, the last answer alone trained."""
        prompt = ids("<|begin_of_text|>")
        for role, text in messages:
            asked = say(role, text) + ("<|start_header_id|>assistant<|end_header_id|>\n\n" if role == "user" else "")
            prompt += ids(f"{text}<|eot_id|>" if role == "assistant" else asked)
        encoded = [ids(f"{answer}<|eot_id|>") for answer in answers]
        kept = share(len(prompt), max(map(len, encoded)), max_length)
        return [expected(prompt[: kept[0]], answer[: kept[1]]) for answer in encoded]

    tokenizer = load_tokenizer(str(shared / "golden" / "runs" / "model"))
    encoder = Encoder(load_template("llama3", tokenizer), tokenizer, max_length, "llamafactory")
    roles = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant"}
    for record in json.loads((shared / "data" / "dpo_en_demo.json").read_text())[:40]:
        messages = [(roles[turn["from"]], turn["value"]) for turn in record["conversations"]]
        answers = [record[key]["value"] for key in ("chosen", "rejected")]
        row = Pair("here:1", tuple(Message(*turn) for turn in messages), *(Message("assistant", answer) for answer in answers))
        assert listed(encoder.process(row)) == cut(messages, answers)
    for record in json.loads((shared / "data" / "kto_en_demo.json").read_text())[:40]:
        *messages, (_, answer) = [(roles[turn["role"]], turn["content"]) for turn in record["messages"]]
        row = Rated("here:1", tuple(Message(*turn) for turn in messages), Message("assistant", answer), record["label"])
        assert listed(encoder.process(row)) == cut(messages, [answer])
