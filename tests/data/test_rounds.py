"""Conversations that are too long: which rounds stay, where the system text goes, and what is cut where nothing else helps."""

import pytest
from transformers import AutoTokenizer

from ltune.data.encode import Dropped, Encoder
from ltune.data.rounds import rounds_of
from ltune.data.rows import IGNORE, Chat, Message, ToolCall
from ltune.data.sources import QUICKSTART
from ltune.data.templates import load_template
from ltune.errors import UsageError

TINY = AutoTokenizer.from_pretrained(str(QUICKSTART.parent / "tiny"))
TINY.add_special_tokens({"additional_special_tokens": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]})
TEMPLATES = {name: load_template(name, TINY) for name in ("llama3", "qwen", "mistral")}
SYSTEM, USER, ASSISTANT = (Message(role, text) for role, text in (("system", "be kind"), ("user", "why?"), ("assistant", "so.")))
BOS = "<|bos|>"
NAMES = "ABCDE"  # as many tokens each


def say(role, text):
    """As llama3 writes it."""
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>"


def rounds(count, system=True):
    turns = [
        message
        for number in range(count)
        for message in (Message("user", f"ask {NAMES[number]}"), Message("assistant", f"say {NAMES[number]}"))
    ]
    return Chat("here:1", ((SYSTEM,) if system else ()) + tuple(turns))


def length(text):
    return len(TINY.encode(text, add_special_tokens=False))


def process(row, max_length, truncation="left", template="llama3", **options):
    return Encoder(TEMPLATES[template], TINY, max_length=max_length, truncation=truncation, **options).process(row)


def texts(made):
    return [TINY.decode(sequence.input_ids, skip_special_tokens=False) for sequence in made.sequences]


def trained(made):
    return [TINY.decode([label for label in one.labels if label != IGNORE], skip_special_tokens=False) for one in made.sequences]


def shown(*numbers, system=True):
    turns = "".join(say("user", f"ask {NAMES[number]}") + say("assistant", f"say {NAMES[number]}") for number in numbers)
    return BOS + (say("system", "be kind") if system else "") + turns


def test_a_round_is_a_question_and_all_up_to_the_next():
    call, result = Message("assistant", "", tool_calls=(ToolCall("look", {}),)), Message("tool", "found")
    head, found = rounds_of((SYSTEM, USER, call, result, ASSISTANT, USER, ASSISTANT, USER))
    assert head == (SYSTEM,)
    assert found == [(USER, call, result, ASSISTANT), (USER, ASSISTANT)]
    assert rounds_of((ASSISTANT, USER, ASSISTANT)) == ((), [(ASSISTANT,), (USER, ASSISTANT)])


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_left_lets_the_oldest_rounds_go_and_keeps_the_system_text(kept):
    numbers = range(4 - kept, 4)
    for spare in (0, length(say("user", "ask A") + say("assistant", "say A")) - 1):
        made = process(rounds(4), length(shown(*numbers)) + spare)
        assert texts(made) == [shown(*numbers)]
        assert trained(made) == ["".join(f"say {NAMES[number]}<|eot_id|>" for number in numbers)]
        assert made.truncated
    assert texts(process(rounds(4, system=False), length(shown(*numbers, system=False)))) == [shown(*numbers, system=False)]


@pytest.mark.parametrize("truncation", ["left", "split"])
@pytest.mark.parametrize("template", ["llama3", "qwen", "mistral"])
@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_of_one_long_round_the_oldest_calls_go_and_the_question_the_system_text_and_the_tools_stay(kept, template, truncation):
    steps = [
        (Message("assistant", "", tool_calls=(ToolCall("look", {"at": name}),)), Message("tool", f"found {name} " * 10)) for name in "ABCD"
    ]
    tools = ({"name": "look", "description": "Looks", "parameters": {"type": "object", "properties": {}}},)

    def row(steps):
        return Chat("here:1", (SYSTEM, USER, *(message for step in steps for message in step), ASSISTANT), tools)

    wanted = process(row(steps[4 - kept :]), 10_000, template=template)
    made = process(row(steps), len(wanted.sequences[0].input_ids) + 5, truncation, template)
    assert texts(made) == texts(wanted)
    assert trained(made) == trained(wanted)
    assert made.truncated


def test_left_keeps_the_system_text_where_the_template_has_it():
    mistral = process(rounds(4), length(f"{BOS}[INST] be kind\n\nask D[/INST] say D<|end|>") + 3, template="mistral")
    assert texts(mistral)[0].startswith(f"{BOS}[INST] be kind\n\nask")
    qwen = process(rounds(4, system=False), 120, template="qwen")
    assert texts(qwen)[0].startswith("<|im_start|>system\nYou are Qwen")
    assert texts(qwen)[0].endswith("say D<|im_end|>\n")


def test_left_then_cuts_the_beginning_of_the_last_question():
    row = Chat("here:1", (SYSTEM, Message("user", "first, second, third"), Message("assistant", "the answer")))
    end = " third<|eot_id|>" + say("assistant", "the answer")
    before = BOS + say("system", "be kind") + "<|start_header_id|>user<|end_header_id|>\n\n"
    made = process(row, length(before) + length(end))
    assert texts(made) == [before + end]
    assert trained(made) == ["the answer<|eot_id|>"]
    assert made.truncated


def test_left_cuts_a_question_that_spells_control_tokens_as_text():
    row = Chat("here:1", (SYSTEM, Message("user", "first<|eot_id|> second<|eot_id|> third"), Message("assistant", "no")))
    whole = process(row, 1000).sequences[0]
    short = process(row, len(whole) - 8)
    assert short.sequences[0].input_ids.tolist().count(TINY.convert_tokens_to_ids("<|eot_id|>")) == 3
    assert texts(short)[0].endswith("second<|eot_id|> third" + "<|eot_id|>" + say("assistant", "no"))
    allowed = process(row, len(whole) - 8, control_tokens="allow").sequences[0]
    assert allowed.input_ids.tolist().count(TINY.convert_tokens_to_ids("<|eot_id|>")) == 5


def test_left_gives_up_the_system_text_before_the_answer():
    row = Chat("here:1", (SYSTEM, USER, Message("assistant", "a long answer")))
    answer = "a long answer<|eot_id|>"
    assert texts(process(row, length(answer) + 3)) == [f"{BOS}\n\n{answer}"]
    assert texts(process(row, length(answer) + 1)) == [BOS + answer]
    assert process(row, length(answer)) == Dropped(f"the answer does not fit in {length(answer)} tokens")


def test_split_makes_rows_of_whole_rounds_each_with_the_system_text():
    made = process(rounds(5), length(shown(0, 1)), "split")
    assert texts(made) == [shown(0, 1), shown(2, 3), shown(4)]
    assert trained(made) == ["say A<|eot_id|>say B<|eot_id|>", "say C<|eot_id|>say D<|eot_id|>", "say E<|eot_id|>"]
    assert (made.split, made.truncated) == (True, False)
    fits = process(rounds(5), length(shown(*range(5))), "split")
    assert (fits.split, fits.truncated, len(fits.sequences)) == (False, False, 1)


def test_split_cuts_a_round_that_is_too_long_by_itself():
    long = (Message("user", "very " * 100 + "long"), Message("assistant", "yes"))
    row = rounds(2)
    made = process(Chat("here:1", (*row.messages[:3], *long, *row.messages[3:])), length(shown(0, 1)), "split")
    assert texts(made)[::2] == [shown(0), shown(1)]
    assert len(made.sequences[1]) == length(shown(0, 1))
    assert texts(made)[1].startswith(BOS + say("system", "be kind"))
    assert texts(made)[1].endswith(" long<|eot_id|>" + say("assistant", "yes"))
    assert made.truncated


def test_split_leaves_out_an_answer_that_is_too_long_and_says_so():
    row = rounds(2)
    long = (Message("user", "so?"), Message("assistant", "word " * 100))
    made = process(Chat("here:1", (*row.messages, *long)), length(shown(0)), "split")
    assert texts(made) == [shown(0), shown(1)]
    assert made.truncated


def test_split_of_the_last_answer_only_is_left():
    assert texts(process(rounds(5), length(shown(0, 1)), "split", train_on="last")) == [shown(3, 4)]


def test_error_names_the_row_and_its_length():
    with pytest.raises(UsageError, match=f"^here:1: {length(shown(0, 1))} tokens, and data.max_length is {length(shown(0))}"):
        process(rounds(2), length(shown(0)), "error")
    assert texts(process(rounds(1), length(shown(0)), "error")) == [shown(0)]
