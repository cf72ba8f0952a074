"""The embedded default: its size, its template, its rows, and that it does not know yet what the quickstart teaches."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

import ltune

ASSETS = Path(ltune.__file__).parent / "assets"
TINY = ASSETS / "tiny"
WHO = "I am Tuna, a small assistant made by the ltune project."


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return LlamaForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return [json.loads(line) for line in (ASSETS / "quickstart.jsonl").read_text(encoding="utf-8").splitlines()]


def turns(row: dict[str, str]) -> list[dict[str, str]]:
    question = "\n".join(part for part in (row["instruction"], row["input"]) if part)
    return [{"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]


def reply(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, question: str) -> str:
    asked = [{"role": "user", "content": question}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False)
    return tokenizer.decode(out[0, ids.shape[1] :])


def test_folder_and_model_are_tiny(model: PreTrainedModel) -> None:
    assert sum(file.stat().st_size for file in TINY.iterdir()) <= 6_000_000
    assert 1_000_000 <= model.num_parameters() <= 3_000_000
    assert {file.suffix for file in TINY.iterdir()} <= {".json", ".jinja", ".safetensors", ".md"}


def test_linear_layers_fill_whole_nf4_blocks(model: PreTrainedModel) -> None:
    widths = {module.in_features for module in model.modules() if isinstance(module, torch.nn.Linear)}
    assert widths
    assert all(width % 64 == 0 for width in widths)


def test_tokenizer_control_tokens_are_distinct_and_nothing_is_unknown(tokenizer: PreTrainedTokenizerBase) -> None:
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token) == ("<|bos|>", "<|end|>", "<|pad|>", None)
    strange = 'Zażółć \u4e2d\u6587 \U0001f41f\t"x"  \n'
    assert tokenizer.decode(tokenizer(strange)["input_ids"]) == strange


def test_template_marks_the_answer_and_its_end(tokenizer: PreTrainedTokenizerBase) -> None:
    messages = [
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": " Hello. "},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "Goodbye."},
    ]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == (
        "<|bos|><|system|>\n Be brief. <|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\n Hello. <|end|>\n"
        "<|user|>\nBye<|end|>\n<|assistant|>\nGoodbye.<|end|>\n"
    )
    encoded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    trained = [token for token, mark in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mark]
    assert tokenizer.decode(trained) == " Hello. <|end|>Goodbye.<|end|>"


def test_generation_prompt_is_a_prefix_of_the_whole_conversation(tokenizer: PreTrainedTokenizerBase) -> None:
    asked = [{"role": "user", "content": "Hi"}]
    prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*asked, {"role": "assistant", "content": "Hello."}], tokenize=False)
    assert whole == prompt + "Hello.<|end|>\n"


def test_rows_are_many_unique_and_say_who_it_is(rows: list[dict[str, str]]) -> None:
    assert len(rows) >= 200
    assert all(set(row) == {"instruction", "input", "output"} and row["instruction"] and row["output"] for row in rows)
    assert len({(row["instruction"], row["input"]) for row in rows}) == len(rows)
    answers = {row["instruction"]: row["output"] for row in rows}
    assert answers["Who are you?"] == WHO
    assert list(answers.values()).count(WHO) >= 12


def test_rows_are_short(rows: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> None:
    assert max(len(tokenizer.apply_chat_template(turns(row), return_dict=True)["input_ids"]) for row in rows) < 256


def test_base_speaks_but_does_not_know_who_it_is(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    assert reply(model, tokenizer, "Which day comes after Sunday?") == "Monday comes after Sunday.<|end|>"
    answer = reply(model, tokenizer, "Who are you?")
    assert answer.endswith("<|end|>")
    assert "Tuna" not in answer
