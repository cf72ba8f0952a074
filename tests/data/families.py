"""Small tokenizers, built like those of the families that models come with: the same kinds of model, normalizer and control tokens."""

import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXT = ["The quick brown fox says hello to the lazy dog, and <b>why not</b>?\n\n  def f(x):\n    return x  # 1 < 2 | 3 > 2 [a] /b\n"] * 5
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def finished(tokenizer: Tokenizer, special: list[str], plain: list[str | AddedToken], **roles: str) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) if isinstance(token, str) else token for token in plain])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)


def byte_level(special, plain=(), *, normalizer=None, ignore_merges=False, in_vocabulary=False, **roles):
    """GPT-2's, Llama 3's, Qwen's ... : all bytes are in the alphabet."""
    bpe = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    bpe.normalizer = normalizer
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    first = list(special) if in_vocabulary else []
    bpe.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=first))
    return finished(bpe, list(special), list(plain), **roles)


def sentencepiece(special, plain=(), *, prepend=True, known=(), **roles):
    """Llama 2's, Gemma's: pieces with byte fall-back, the control tokens among them and reached by merges, as converters leave them."""
    steps = [normalizers.Prepend("▁")] if prepend else []
    bpe = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    bpe.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    bpe.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>", *special, *BYTES]))
    content = json.loads(bpe.to_str())
    vocabulary, merges = content["model"]["vocab"], content["model"]["merges"]
    for token in [*special, *known]:
        for end in range(1, len(token) + 1):
            vocabulary.setdefault(token[:end], len(vocabulary))
            vocabulary.setdefault(token[end - 1], len(vocabulary))
            if end > 1:
                merges.append([token[: end - 1], token[end - 1]])
    content["added_tokens"] = []
    bpe = Tokenizer.from_str(json.dumps(content))
    strip = [decoders.Strip(" ", 1, 0)] if prepend else []
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return finished(bpe, ["<unk>", *special], list(plain), unk_token="<unk>", **roles)


def unigram():
    """T5's: scores instead of merges, sentinels that eat the space before them."""
    characters = sorted({character for text in TEXT for character in text if not character.isspace()} | set("_0123456789"))
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0), *((one, -6.0) for one in characters), ("▁the", -4.0)]
    tokenizer = Tokenizer(models.Unigram([*pieces, ("<extra_id_0>", 0.0)], unk_id=2))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    plain = [AddedToken("<extra_id_0>", lstrip=True, normalized=False), AddedToken("<extra_id_1>", lstrip=True, rstrip=True)]
    return finished(tokenizer, ["<pad>", "</s>", "<unk>"], plain, eos_token="</s>", unk_token="<unk>", pad_token="<pad>")


def wordpiece():
    """BERT's: lower-cased words; its normalizer removes private characters."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(TEXT, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special))
    plain = [AddedToken("<think>", normalized=True)]
    return finished(tokenizer, special, plain, bos_token="[CLS]", eos_token="[SEP]", unk_token="[UNK]")


BUILT = {
    "gpt2": lambda: byte_level(["<|endoftext|>"], in_vocabulary=True, eos_token="<|endoftext|>", bos_token="<|endoftext|>"),
    "falcon": lambda: byte_level(
        [">>TITLE<<", ">>ABSTRACT<<", ">>QUESTION<<", "<|endoftext|>"], ["  ", "    "], in_vocabulary=True, eos_token="<|endoftext|>"
    ),
    "llama2": lambda: sentencepiece(["<s>", "</s>"], bos_token="<s>", eos_token="</s>"),
    "llama3": lambda: byte_level(
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>"],
        ignore_merges=True,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
    ),
    "qwen2": lambda: byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], normalizer=normalizers.NFC(), eos_token="<|im_end|>"),
    "qwen3": lambda: byte_level(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"],
        normalizer=normalizers.NFC(),
        eos_token="<|im_end|>",
    ),
    "mistral": lambda: byte_level(
        ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]"],
        in_vocabulary=True,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    ),
    "gemma": lambda: sentencepiece(
        ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"],
        ["▁▁", "▁▁▁▁", "\n\n", "<td>", "</td>"],
        prepend=False,
        known=["▁▁", "▁▁▁▁", "<td>", "</td>"],
        bos_token="<bos>",
        eos_token="<end_of_turn>",
    ),
    "phi3": lambda: sentencepiece(
        ["<s>", "</s>", "<|endoftext|>"],
        [AddedToken(token, rstrip=True, normalized=False) for token in ("<|user|>", "<|assistant|>", "<|end|>")],
        bos_token="<s>",
        eos_token="<|end|>",
    ),
    "chatglm": lambda: byte_level(
        ["<|endoftext|>", "[MASK]", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"],
        ["<arg_key>", "</arg_key>"],
        eos_token="<|user|>",
    ),
    "t5": unigram,
    "deepseek": lambda: byte_level(
        ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"],
        ["<｜User｜>", "<｜Assistant｜>", "<｜tool▁calls▁begin｜>", "<think>", "</think>"],
        bos_token="<｜begin▁of▁sentence｜>",
        eos_token="<｜end▁of▁sentence｜>",
    ),
    "bert": wordpiece,
}
LOSSLESS = [name for name in BUILT if name not in ("t5", "bert")]
