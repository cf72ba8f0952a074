"""Ids back to text, token by token, also where a character is divided between tokens."""

import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltune.data.rows import IGNORE, Sequence
from ltune.data.segments import Stretch, stretches_of, texts_of, tokens_of
from ltune.models.tokenizer import load_tokenizer

TEXTS = [
    "",
    "plain words, and  two spaces \n\n and lines\n",
    "😀 and 👩‍👩‍👧 and नमस्ते and 漢字 and ﷽",
    "a replacement character \ufffd\ufffd of the text's own, then 😀",
    " leading and trailing ",
    "<|user|>\nhi<|end|>\n<|assistant|>\n🐟🐟🐟<|end|>",
]


def wrapped(core, **options):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **options)


def byte_level():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {character: number for number, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocabulary, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<|end|>", "<|user|>", "<|assistant|>"])
    return wrapped(core)


def sentencepiece():
    """As Llama 2's: spaces are ▁, one is put before, what is unknown becomes bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz,.", "an", "▁an", "▁and"]
    merges = [("a", "n"), ("▁", "an"), ("▁an", "d")]
    core = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    core.add_special_tokens(["</s>"])
    return wrapped(core)


def metaspace():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = [("<unk>", 0.0), ("▁", -3.0), *((character, -4.0) for character in "abcdefghijklmnopqrstuvwxyz,.\n"), ("▁and", -2.0)]
    core = Tokenizer(models.Unigram(pieces, 0, False))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    return wrapped(core, unk_token="<unk>")


def wordpiece():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = ["[UNK]", *"abcdefghijklmnopqrstuvwxyz,.", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"), "and", "word", "##s"]
    core = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(dict.fromkeys(pieces))}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece(cleanup=False)
    return wrapped(core, unk_token="[UNK]")


def decoded(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("made", [byte_level, sentencepiece, metaspace, wordpiece])
@pytest.mark.parametrize("text", TEXTS)
def test_the_texts_joined_are_the_whole_and_each_is_what_the_text_grows_by(made, text):
    tokenizer = made()
    ids = tokenizer.encode(" ".join([text] * 9), add_special_tokens=False)  # longer than a window
    texts = texts_of(ids, tokenizer)
    whole = decoded(tokenizer, ids)
    assert "".join(texts) == whole
    for count in range(len(ids)):  # the slow way, which shows half a character as U+FFFD
        slow = decoded(tokenizer, ids[:count])
        assert slow == "".join(texts[:count]) or "\ufffd" in slow


def test_a_divided_character_is_its_last_tokens():
    tokenizer = byte_level()
    ids = tokenizer.encode("a😀b", add_special_tokens=False)
    assert len(ids) == 6
    assert texts_of(ids, tokenizer) == ["a", "", "", "", "😀", "b"]


def test_a_space_is_not_lost_between_words():
    tokenizer = sentencepiece()
    ids = tokenizer.encode("an and and", add_special_tokens=False)
    assert texts_of(ids, tokenizer) == ["an", " and", " and"]
    ids = tokenizer.encode("and " * 40, add_special_tokens=False)
    assert texts_of(ids, tokenizer)[1:40] == [" and"] * 39


def test_a_character_cut_in_two_by_truncation_is_shown_as_the_tokenizer_shows_it():
    tokenizer = byte_level()
    ids = tokenizer.encode("😀ab😀", add_special_tokens=False)
    for begin in range(5):
        for end in range(5, 11):
            assert "".join(texts_of(ids[begin:end], tokenizer)) == decoded(tokenizer, ids[begin:end])


def test_random_ids_that_are_no_text():
    generator = np.random.default_rng(3)
    for tokenizer in (byte_level(), sentencepiece(), load_tokenizer("tiny")):
        for length in (1, 7, 33, 200):
            ids = generator.integers(0, len(tokenizer), length).tolist()
            assert "".join(texts_of(ids, tokenizer)) == decoded(tokenizer, ids)


def test_stretches_and_control_tokens():
    tokenizer = byte_level()
    ids = tokenizer.encode("<|user|>é<|end|>", add_special_tokens=False)
    tokens = tokens_of(Sequence(ids, [IGNORE, *ids[1:3], IGNORE]), tokenizer)
    assert [(token.text, token.trained, token.control) for token in tokens] == [
        ("<|user|>", False, True), ("", True, False), ("é", True, False), ("<|end|>", False, True),
    ]  # fmt: skip
    assert stretches_of(tokens) == [Stretch("<|user|>", False), Stretch("é", True), Stretch("<|end|>", False)]


def test_a_long_row_takes_no_square_of_its_length():
    tokenizer = byte_level()
    ids = tokenizer.encode("many words and 😀 " * 400, add_special_tokens=False)
    begin = time.perf_counter()
    texts_of(ids, tokenizer)
    assert len(ids) == 8000
    assert time.perf_counter() - begin < 5  # about 0.4 s; decoding all that stands before each token would take 20


TOKENIZERS = [byte_level(), sentencepiece()]


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60), st.data())
def test_whatever_is_trained_the_stretches_joined_are_the_text(text, data):
    for tokenizer in TOKENIZERS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        chosen = data.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
        row = Sequence(ids, [id if trained else IGNORE for id, trained in zip(ids, chosen, strict=True)])
        stretches = stretches_of(tokens_of(row, tokenizer))
        assert "".join(stretch.text for stretch in stretches) == decoded(tokenizer, ids)
        assert all(one.trained is not other.trained for one, other in pairwise(stretches))
