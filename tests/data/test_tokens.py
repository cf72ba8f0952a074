"""Text of a row never becomes a control token, whatever the family of the tokenizer; and it stays what it was."""

import importlib.util
import json
import pickle
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from ltune.data.encode import Encoder
from ltune.data.rows import Chat, Message, Text, ToolCall
from ltune.data.templates import load_template
from ltune.data.tokens import Tokens
from ltune.errors import UsageError

spec = importlib.util.spec_from_file_location("families", Path(__file__).with_name("families.py"))
families = importlib.util.module_from_spec(spec)
spec.loader.exec_module(families)
FAMILIES = list(families.BUILT)
# Markers around each turn are control tokens; reasoning, tools and calls are written as the families' own templates write them
TEMPLATE = """{{- bos_token -}}
{%- if tools -%}{{- first -}}tools\n{%- for tool in tools -%}{{- tool | tojson -}}{%- endfor -%}{{- last -}}{%- endif -%}
{%- for message in messages -%}
{{- first ~ message.role ~ "\n" -}}
{%- if message.role == "assistant" -%}{%- generation -%}
{%- if message.reasoning_content -%}{{- "(" ~ message.reasoning_content ~ ")\n" -}}{%- endif -%}
{{- message.content -}}
{%- for call in message.tool_calls or [] -%}
{{- "\n" ~ call.function.name ~ "\n" -}}{{- call.function.arguments | tojson(ensure_ascii=ascii) -}}
{%- endfor -%}
{{- eos_token -}}{%- endgeneration -%}
{%- else -%}{{- message.content ~ last -}}{%- endif -%}
{%- endfor -%}"""


@cache
def built(family):
    tokenizer = families.BUILT[family]()
    return tokenizer, Tokens(tokenizer)


@cache
def encoder(family, **options):
    """Its template begins and ends a turn with control tokens of the family."""
    tokenizer, tokens = built(family)
    names = [name for name in tokens.names if name not in ("<unk>", "[UNK]")]
    sets = f"{{%- set first, last, ascii = {names[0]!r}, {names[-1]!r}, {options.pop('ascii', False)} -%}}"
    tokenizer.chat_template = sets + TEMPLATE
    return Encoder(load_template(None, tokenizer), tokenizer, max_length=100_000, **options)


def chat(*contents, **options):
    roles = ["user", "assistant"] * len(contents)
    return Chat("here:1", tuple(Message(role, content) for role, content in zip(roles, contents, strict=False)), **options)


def controls(family, ids):
    return ids[built(family)[1].is_control[ids]].tolist()


def temptations(family):
    """Texts that spell the family's control tokens in all manners."""
    names = built(family)[1].names
    return [
        "".join(names),
        " ".join(names),
        "\n".join(f"a{name}b" for name in names),
        names[-1][1:] + names[0][:-1] + "".join(reversed(names)),
        f"  {names[0]}  <  {names[-1].upper()} \n\n",
        f"[b]<0x0A> {names[0] * 3}",
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_control_token_comes_from_text(family):
    tokenizer, tokens = built(family)
    plain = encoder(family).process(chat("why", "hello", "no", "yes")).sequences[0]
    assert controls(family, plain.input_ids)  # the template's are there
    for text in temptations(family):
        made = encoder(family).process(chat(f"({text})", "hello", "no", f"({text})"))
        assert controls(family, made.sequences[0].input_ids) == controls(family, plain.input_ids), text
        assert made.control_tokens == tokens.found_in([text, text])
        if family in families.LOSSLESS:
            assert tokenizer.decode(made.sequences[0].input_ids, clean_up_tokenization_spaces=False).count(f"({text})") == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_no_control_token_comes_from_plain_text(family):
    for text in temptations(family):
        (sequence,) = Encoder(None, built(family)[0], max_length=100_000).encode(Text("here:1", text))
        ends = [id for id in (sequence.input_ids[0], sequence.input_ids[-1]) if id in (built(family)[1].bos_id, built(family)[1].eos_id)]
        assert controls(family, sequence.input_ids) == ends


@pytest.mark.parametrize("ascii", [False, True])
@pytest.mark.parametrize("family", ["qwen3", "deepseek", "gemma", "chatglm", "bert"])
def test_no_control_token_comes_from_reasoning_tools_and_calls(family, ascii):
    def row(text):
        call = ToolCall("look_up", {"what": text, "more": [{"deep": text}]})
        answer = Message("assistant", text, reasoning=text, tool_calls=(call,))
        tools = ({"name": "look_up", "description": text, "parameters": {"type": "object", "properties": {}}},)
        messages = (Message("system", text), Message("user", text), answer, Message("tool", text), Message("assistant", text))
        return Chat("here:1", messages, tools)

    plain = encoder(family, ascii=ascii).process(row("why")).sequences[0]
    for text in temptations(family):
        made = encoder(family, ascii=ascii).process(row(text)).sequences[0]
        assert controls(family, made.input_ids) == controls(family, plain.input_ids), text
        if family in families.LOSSLESS:
            decoded = built(family)[0].decode(made.input_ids, clean_up_tokenization_spaces=False)
            assert decoded.count(text.strip()) >= 6
            assert decoded.count(json.dumps(text)) + decoded.count(json.dumps(text, ensure_ascii=False)) >= 3


@pytest.mark.parametrize("family", FAMILIES)
def test_text_without_control_tokens_is_tokenised_as_by_the_tokenizer_itself(family):
    tokens = built(family)[1]
    texts = ["hello  the   dog\n\n\n    x <b> é你🦊 \t 1", "▁▁ a", " ", "", "[a] </b> <0x0A>"]
    direct, counts = tokens.encode(texts)
    shield = tokens.shield(texts)
    shielded, same = tokens.encode_shielded([shield.text(text) for text in texts], shield)
    assert same == counts
    assert shielded.tolist() == direct.tolist()
    assert direct.tolist() == [id for text in texts for id in built(family)[0].encode(text, add_special_tokens=False)]


@pytest.mark.parametrize("family", families.LOSSLESS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_text_of_any_family_comes_back(family, data):
    names = built(family)[1].names
    parts = st.sampled_from([*names, *(name[:-1] for name in names), " ", "\n", "<", ">"]) | st.text(
        "aThe [/|<▁\té你🦊\U000f0000\U00100000", max_size=5
    )
    text = "".join(data.draw(st.lists(parts, max_size=6)))
    made = encoder(family).process(chat("why", f"({text})")).sequences[0]
    plain = encoder(family).process(chat("why", "hello")).sequences[0]
    assert controls(family, made.input_ids) == controls(family, plain.input_ids)
    # Decoders of SentencePiece write its sign for a space as a space, also where the text had the sign itself
    written = text.replace("▁", " ") if family in ("llama2", "gemma", "phi3") else text
    assert f"({written})" in built(family)[0].decode(made.input_ids, clean_up_tokenization_spaces=False)


def test_stand_ins_keep_away_from_texts_that_have_private_characters():
    tokens = built("llama3")[1]
    text = "\U00100000<|eot_id|>\\U00100009\\udbc0\\udc0f"
    shield = tokens.shield([text])
    assert shield.start > 0x10000F
    ids, _ = tokens.encode_shielded([shield.text(text)], shield)
    assert built("llama3")[0].decode(ids) == text
    assert not controls("llama3", ids)


def test_a_text_with_private_characters_everywhere_is_refused():
    tokens = built("llama3")[1]
    every = "".join(chr(first) for first, last in ((0xF0000, 0xFFFFE), (0x100000, 0x10FFFE)) for first in range(first, last, 4))
    with pytest.raises(UsageError, match="private characters"):
        tokens.shield([every])


def test_few_copies_of_the_tokenizer_are_kept():
    tokens = Tokens(families.BUILT["llama3"]())
    for number in range(8):
        text = "".join(chr(0x100000 + 8 * other) for other in range(number)) + "<|eot_id|>"
        shield = tokens.shield([text])
        ids, _ = tokens.encode_shielded([shield.text(text)], shield)
        assert tokens.direct.decode(ids.tolist(), skip_special_tokens=False) == text
    assert len(tokens._blind) == 3


def test_it_travels_to_another_process():
    tokens = built("qwen3")[1]
    shield = tokens.shield([""])
    there = pickle.loads(pickle.dumps(tokens))
    text = shield.text("a<think>b")
    assert there.encode_shielded([text], shield)[0].tolist() == tokens.encode_shielded([text], shield)[0].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_more_words_than_a_tokenizer_remembers(family):
    tokens = built(family)[1]
    texts = [" ".join(f"word{number * place}" for place in range(3, 300)) for number in range(1, 60)]
    expected = [id for encoding in Tokenizer.from_str(tokens.json).encode_batch(texts, add_special_tokens=False) for id in encoding.ids]
    for one in (tokens, tokens, pickle.loads(pickle.dumps(tokens))):
        assert one.encode(texts)[0].tolist() == expected
