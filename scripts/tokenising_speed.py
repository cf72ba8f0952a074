"""How much of the tokenizer's own batch speed is left once rows are rendered, tokenised, checked for control tokens and labelled.

    python scripts/tokenising_speed.py alpaca.json [--rows 20000] [--threads 1]

Prints a table in Markdown: the embedded model's tokenizer with its own template, and a byte-level BPE of 16,000 pieces, trained on the
file, with llama3's. Seconds are those in the processor. The contestants take turns with each few hundred rows, several times over, and the
least that each took for these rows counts: other programs on the machine take caches away for seconds at a time.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHUNK = 500  # rows at once, as in a run
LLAMA3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|pad|>"]


def main() -> None:
    """One line of the table after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="rows with instruction, input and output")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1, help="of the tokenizer")
    arguments = parser.parse_args()
    os.environ |= {"RAYON_NUM_THREADS": str(arguments.threads), "TOKENIZERS_PARALLELISM": "true"}

    from ltune.models.tokenizer import load_tokenizer

    records = json.loads(arguments.file.read_text(encoding="utf-8"))
    print("| tokenizer | what | us/row | tokens/s | of encode_batch | of encode_batch_fast |\n|---|---|---:|---:|---:|---:|")
    for name, tokenizer, template in (("embedded", load_tokenizer("tiny"), None), ("BPE 16k", trained(records), "llama3")):
        compare(name, tokenizer, template, rows_of(records, arguments.rows), arguments.rounds)


def compare(name: str, tokenizer: Any, template: str | None, rows: list, rounds: int) -> None:
    """The tokenizer alone on the rendered texts, rendering alone, and all of it."""
    from tokenizers import Tokenizer

    from ltune.data.encode import Encoder
    from ltune.data.templates import load_template

    encoder = Encoder(load_template(template, tokenizer), tokenizer, max_length=2048)
    assert encoder.template is not None
    render, direct = encoder.template.render, Tokenizer.from_str(encoder.tokens.json)  # as it comes
    texts = [segment.text for row in rows for segment in render(row.messages)]
    tokens = sum(map(len, direct.encode_batch_fast(texts, add_special_tokens=False)))
    contestants: dict[str, Callable[[list], Any]] = {
        "encode_batch": lambda some: direct.encode_batch(some, add_special_tokens=False),
        "encode_batch_fast": lambda some: direct.encode_batch_fast(some, add_special_tokens=False),
        "render": lambda some: [render(row.messages) for row in some],
        "process_batch": encoder.process_batch,
    }
    total = dict.fromkeys(contestants, 0.0)
    for begin in range(0, len(rows), CHUNK):
        some = rows[begin : begin + CHUNK]
        texts = [segment.text for row in some for segment in render(row.messages)]
        least = dict.fromkeys(contestants, float("inf"))
        for _ in range(rounds):
            for what, work in contestants.items():
                least[what] = min(least[what], seconds(work, texts if what.startswith("encode") else some))
        total = {what: total[what] + least[what] for what in contestants}
    for what, took in total.items():
        shares = " | ".join(f"{total[other] / took:.0%}" for other in ("encode_batch", "encode_batch_fast"))
        print(f"| {name} | {what} | {took / len(rows) * 1e6:.1f} | {tokens / took:,.0f} | {shares} |", flush=True)


def seconds(work: Callable[[list], Any], items: list) -> float:
    """In the processor."""
    begin = time.process_time()
    work(items)
    return time.process_time() - begin


def rows_of(records: list[dict], count: int) -> list:
    """As many conversations, the file over and over."""
    from ltune.data.rows import Chat, Message

    made = []
    for number in range(count):
        record = records[number % len(records)]
        question = "\n".join(filter(None, (record["instruction"], record.get("input"))))
        made.append(Chat(f"row {number}", (Message("user", question), Message("assistant", record["output"]))))
    return made


def trained(records: list[dict]) -> Any:
    """A byte-level BPE with llama3's control tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=16_000, special_tokens=LLAMA3, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator([" ".join(map(str, record.values())) for record in records], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=LLAMA3[0], eos_token=LLAMA3[4], pad_token=LLAMA3[6])


if __name__ == "__main__":
    main()
