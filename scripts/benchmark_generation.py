#!/usr/bin/env python3
"""Time `ltune predict` on one GPU, and transformers' own generate beside it at several batch sizes, in the same visit.

    python scripts/benchmark_generation.py --model FOLDER --data FOLDER --out FOLDER [--rows N] [--tokens N] [--batches N ...]

The walk-through's 591 prompts, up to 128 new tokens, greedy, NF4 weights with a LoRA adapter. transformers answers one batch of each
size, prompts of medium length, all run to the last token, its adapter in 16 bits and without autocast, which is its quickest; the whole
job's time is worked out from its best rate. A model of random weights seldom says its stop token, so ours run to the last token too.
Prints one table and writes it as generation.json.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

CONFIGURATION = Path(__file__).resolve().parents[1] / "configs" / "llama3_lora_sft.yaml"
PROMPTS = 591  # of the walk-through
# Arguments: the model, predictions.jsonl, new tokens, batch sizes
PLAIN = """
import json, sys, time
import torch
from ltune.generation.engine import generate
from ltune.generation.sampling import Sampling
from ltune.models.adapters import LoRA
from ltune.models.load import load_model
from ltune.models.quantize import NF4
from ltune.models.tokenizer import load_tokenizer
name, predictions, new, *sizes = sys.argv[1:]
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
tokenizer = load_tokenizer(name)
prompts = [tokenizer(json.loads(line)["prompt"], add_special_tokens=False).input_ids for line in open(predictions, encoding="utf-8")]
prompts.sort(key=len)
model = load_model(name, dtype=torch.bfloat16, quantize=NF4(), attention=None, revision=None, trust_remote_code=None, device=device)
model = LoRA(rank=8, alpha=16).apply(model)
for parameter in model.parameters():
    if parameter.requires_grad:
        parameter.data = parameter.data.to(torch.bfloat16)
def answers(count, new):
    first = max(0, (len(prompts) - count) // 2)
    return generate(model, prompts[first : first + count], Sampling(max_new_tokens=new), stop_ids=set(), pad_id=tokenizer.pad_token_id)
answers(int(sizes[0]), 4)
for size in map(int, sizes):
    begin = time.monotonic()
    tokens = sum(map(len, answers(size, int(new))))
    print(json.dumps({"size": size, "tokens": tokens, "seconds": time.monotonic() - begin}), flush=True)
"""


@dataclass
class Result:
    """What was generated, and how long it took."""

    what: str
    tokens: int = 0
    seconds: float = 0.0  # in generation
    command: float | None = None  # seconds of the whole command
    job: float | None = None  # seconds that all prompts take in generation, measured or worked out

    @property
    def rate(self) -> float:
        """Generated tokens a second."""
        return self.tokens / self.seconds if self.seconds else 0.0


def main() -> int:
    """Ours, theirs, one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=500, help="first rows of each data set (500: 91 + 500 prompts)")
    parser.add_argument("--tokens", type=int, default=128, help="new ones of each prompt")
    parser.add_argument("--batches", type=int, nargs="*", default=[16, 64, 256], help="batch sizes of transformers' generate")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    mine, predictions = ours(arguments)
    results = [mine, *(theirs(arguments, predictions, mine.tokens) if mine.tokens and arguments.batches else [])]
    best = max((one.rate for one in results[1:]), default=0.0)
    content = {"prompts": PROMPTS if arguments.rows == 500 else None, "new_tokens": arguments.tokens}
    content |= {"results": [asdict(one) | {"rate": one.rate} for one in results], "ratio_to_best": mine.rate / best if best else None}
    (arguments.out / "generation.json").write_text(json.dumps(content, indent=1))
    print(f"{'what':34s} {'tokens':>8s} {'seconds':>8s} {'tokens/s':>9s} {'all prompts s':>14s} {'command s':>10s}")
    for one in results:
        job, command = (f"{value:.1f}" if value is not None else "-" for value in (one.job, one.command))
        print(f"{one.what:34s} {one.tokens:8d} {one.seconds:8.2f} {one.rate:9.0f} {job:>14s} {command:>10s}")
    if best:
        print(f"ours over the best of theirs: {mine.rate / best:.1f}")
    return 0


def ours(arguments: argparse.Namespace) -> tuple[Result, Path]:
    """The real command; its own line says what it generated. And where its predictions are."""
    run = arguments.out / "runs" / "predict"
    command = [sys.executable, "-m", "ltune", "predict", "--config", str(CONFIGURATION), "--run", str(run)]
    command += ["--model.model", str(arguments.model), "--data.folder", str(arguments.data), "--data.max_rows", str(arguments.rows)]
    command += ["--trainer.precision", "bf16-true", "--model.sampling.max_new_tokens", str(arguments.tokens)]
    begin = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.monotonic() - begin
    (arguments.out / "predict.log").write_text(done.stdout + done.stderr)
    found = re.search(r"generated (\d+) tokens in ([\d.]+) s", done.stderr)
    if done.returncode or not found:
        return Result(f"ltune predict (exit {done.returncode})", command=seconds), run
    return Result("ltune predict", int(found[1]), float(found[2]), seconds, float(found[2])), run / "predictions.jsonl"


def theirs(arguments: argparse.Namespace, predictions: Path, all_tokens: int) -> list[Result]:
    """One batch of each size, the model loaded once."""
    command = [sys.executable, "-c", PLAIN, str(arguments.model), str(predictions), str(arguments.tokens), *map(str, arguments.batches)]
    done = subprocess.run(command, capture_output=True, text=True)
    (arguments.out / "transformers.log").write_text(done.stdout + done.stderr)
    results = []
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            found = json.loads(line)
            one = Result(f"transformers generate, batch {found['size']}", found["tokens"], found["seconds"])
            one.job = all_tokens / one.rate
            results.append(one)
    return results if not done.returncode else [*results, Result(f"transformers generate (exit {done.returncode})")]


if __name__ == "__main__":
    sys.exit(main())
