"""Build the embedded default from nothing: `python scripts/build_tiny.py` writes ltune/assets/tiny and ltune/assets/quickstart*.jsonl.

Deterministic: the same script, library versions and kind of processor give the same files. About 11 minutes on one core. The base is
pretrained by two runs of `ltune fit` with all weights trained: plain text first, then conversations, which bring in the control tokens
(text in a row can never become one).
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
import yaml
from tiny_prompts import prompt_rows
from tiny_quickstart import quickstart_rows
from tiny_text import conversations, paragraphs
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ASSETS = Path(__file__).resolve().parents[1] / "ltune" / "assets"
SEED = 42
VOCABULARY = 1024
CONTEXT = 1024  # tokens
TEXTS, CHATS = 10_000, 16_000  # rows to pretrain on
CONTROL_TOKENS = ["<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
    {%- if message.role not in ["system", "user", "assistant"] -%}
        {{- raise_exception("The roles are system, user and assistant, not " ~ message.role) -}}
    {%- endif -%}
    {{- "<|" ~ message.role ~ "|>\\n" -}}
    {%- if message.role == "assistant" -%}
        {%- generation -%}{{- message.content -}}{{- "<|end|>" -}}{%- endgeneration -%}
    {%- else -%}
        {{- message.content -}}{{- "<|end|>" -}}
    {%- endif -%}
    {{- "\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "<|assistant|>\\n" -}}
{%- endif -%}
"""
CARD = """\
# The embedded tiny model

A Llama-architecture language model of {parameters:,} parameters, for trying ltune out and for its tests; it knows a few hundred words.
`scripts/build_tiny.py` made all of it from nothing: the text (sentence patterns and word lists written for ltune, `scripts/tiny_text.py`),
the byte-level BPE tokenizer ({vocabulary} tokens), the chat template and the weights, pretrained by `ltune fit` and stored in bfloat16.
No other model or data set went in. Licence: Apache-2.0.
"""


def train_tokenizer(rows: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: any text can be encoded, so there is no unknown token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=CONTROL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(rows, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        eos_token="<|end|>",
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def initial_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Random weights from SEED. Every width is a multiple of 64, the block size of NF4."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def fit(start: Path, rows: Iterable[dict[str, str]], run: Path, objective: str, learning_rate: float) -> Path:
    """Train all weights of the model in `start` on the rows, one epoch, with `ltune fit`; the folder of the trained model."""
    run.mkdir(parents=True)
    data = write_rows(rows, run / "rows.jsonl")
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": learning_rate, "weight_decay": 0.01}}
    config = {
        "seed_everything": SEED,
        "run": str(run / "run"),
        "model": {
            "model": str(start),
            "quantize": None,
            "adapter": "Full",
            "objective": objective,
            "optimizer": optimizer,
            "schedule": {"class_path": "Cosine", "init_args": {"warmup": 0.05}},
        },
        "data": {"datasets": [str(data)], "max_length": CONTEXT // 2, "train_on": "all", "batch_size": 16},
        "checkpoint": {"every": 1000, "keep": 1},
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 1,
            "accumulate_grad_batches": 1,
            "precision": "32-true",
            "gradient_clip_val": 1.0,
            "log_every_n_steps": 50,
        },
    }
    file = run / "fit.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # sums are added up in the same order on any number of cores
    subprocess.run([sys.executable, "-m", "ltune", "fit", "--config", str(file)], check=True, env=one_thread)
    return run / "run" / "model"


def write_rows(rows: Iterable[dict[str, str]], file: Path) -> Path:
    """One JSON object a line."""
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def save(trained: Path, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """The embedded folder: weights in bfloat16, tokenizer with its template, card."""
    model = LlamaForCausalLM.from_pretrained(trained, dtype=torch.bfloat16)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    card = CARD.format(parameters=model.num_parameters(), vocabulary=len(tokenizer))
    (folder / "README.md").write_text(card, encoding="utf-8")
    for file in folder.iterdir():
        file.chmod(0o644)


def build(assets: Path, work: Path) -> None:
    texts, chats = list(paragraphs(TEXTS, SEED)), list(conversations(CHATS, SEED + 1))
    tokenizer = train_tokenizer([row["text"] for row in texts] + [f"{row['instruction']} {row['output']}" for row in chats])
    start = work / "start"
    initial_model(tokenizer).save_pretrained(start)
    tokenizer.save_pretrained(start)
    reader = fit(start, texts, work / "text", "Pretrain", learning_rate=3e-3)
    talker = fit(reader, chats, work / "chat", "SFT", learning_rate=1.5e-3)
    assets.mkdir(parents=True, exist_ok=True)
    save(talker, tokenizer, assets / "tiny")
    write_rows(quickstart_rows(), assets / "quickstart.jsonl")
    write_rows(prompt_rows(), assets / "quickstart_prompts.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--output", type=Path, default=ASSETS, help="folder that gets tiny/ and quickstart*.jsonl (default: ltune/assets)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ltune-tiny-") as work:
        build(arguments.output, Path(work))


if __name__ == "__main__":
    main()
