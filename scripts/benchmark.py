#!/usr/bin/env python3
"""Time training through the real `ltune fit` on one GPU, peers beside it in the same visit, and how far both are from the hardware's limit.

    python scripts/benchmark.py --model FOLDER --data FOLDER --out FOLDER [--only NAME ...] [--peer 'NAME=COMMAND' ...]

FOLDER of the model: a Llama-3-8B (random weights do). W1: 8 rows a step; W2: 8,192 tokens a step. Prints one table and writes it as
benchmark.json. A peer's command prints a line with `median_ms X` and `peak_gib Y`, as its last such line.
"""

import argparse
import json
import math
import re
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path

WARM_UP = 10
CONFIGURATION = Path(__file__).resolve().parents[1] / "configs" / "llama3_lora_sft.yaml"
W1 = ["--trainer.precision", "bf16-true"]
# Each row once an epoch: equal rows in a micro-batch would be computed once, which is not the peers' work
W2 = [*W1, "--data.tokens_per_batch", "8192", "--trainer.accumulate_grad_batches", "1", "--trainer.max_epochs", "9"]
PLAIN = ["--model.fast", "false"]
DROPOUT = ["--model.adapter.init_args.dropout", "0.05"]
LEAST = ["--model.memory", "least"]
NO_LORA_PLUS = ["--model.lora_plus_ratio", "null", "--model.quantize", "null"]
FULL = [*W2, *NO_LORA_PLUS, "--model.adapter", "Full"]


@dataclass
class Case:
    """A job to time: options on top of the walk-through's configuration."""

    options: list[str]
    steps: int | None = 40
    warm_up: int = WARM_UP
    long: int | None = None  # tokens of its rows, made for it
    rows: int = 1  # of so many tokens, a step
    uneven: bool = False  # rows of six to nine tenths of that, hardly one as long as another
    pairs: bool = False  # these are prompts, each with two answers of a few hundred tokens
    small: bool = False  # a random 1B model instead
    full: bool = False  # all weights are trained: the products of the weights' gradients count too
    packed: bool = False  # averages in which an epoch ends, which writes a checkpoint, or with its short step in them are left out
    every: int = 5  # steps that are timed together, as the configuration logs them: looking at each makes the GPU wait


CASES = {
    "W1": Case(W1, steps=None, warm_up=75),  # the whole run; in its first epoch CUDA graphs are captured
    "W1 16-mixed": Case(["--trainer.precision", "16-mixed"]),
    "W1 least": Case([*W1, *LEAST], steps=30),
    "W1 plain": Case([*W1, *PLAIN], steps=20, warm_up=5),
    "W2": Case(W2, steps=90, packed=True),
    "W2 least": Case([*W2, *LEAST], steps=40, packed=True),
    "W1 dropout": Case([*W1, *DROPOUT], steps=120, warm_up=75),
    "W2 dropout": Case([*W2, *DROPOUT], packed=True),
    "W2 plain": Case([*W2, *PLAIN], steps=30, warm_up=5, packed=True),
    "32k": Case(W1, steps=12, warm_up=3, long=32768, every=1),
    "32k exact": Case([*W1, "--trainer.deterministic", "true"], steps=12, warm_up=3, long=32768, every=1),
    "128k": Case(W1, steps=2, warm_up=1, long=131072, every=1),
    "4 x 8k": Case(W1, steps=20, warm_up=5, long=8192, rows=4),
    "8k uneven": Case(W1, steps=100, warm_up=60, long=8192, uneven=True),
    "DPO 8k": Case([*W1, "--model.objective", "DPO"], steps=20, warm_up=5, long=8192, uneven=True, pairs=True, every=1),
    "1B LoRA": Case([*W2, *NO_LORA_PLUS], steps=60, small=True, packed=True),
    "1B full": Case(FULL, steps=40, small=True, full=True, packed=True),
}


@dataclass
class Result:
    """What a job came to."""

    what: str
    step_ms: float | None = None
    tokens: float | None = None  # a step
    gib: float | None = None
    seconds: float | None = None  # the whole command
    floor_ms: float | None = None
    losses: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        ratio = self.step_ms / self.floor_ms if self.step_ms and self.floor_ms else None
        numbers = ((self.step_ms, 8, 1), (self.floor_ms, 7, 0), (ratio, 6, 2), (self.tokens, 7, 0), (self.gib, 6, 1), (self.seconds, 8, 0))
        shown = (f"{value:{width}.{digits}f}" if value is not None else f"{'-':>{width}s}" for value, width, digits in numbers)
        return " ".join([f"{self.what:30s}", *shown])


@dataclass
class Limits:
    """Of the GPU."""

    products: float  # operations a second, bf16
    copies: float  # bytes a second

    def floor_ms(self, case: Case, tokens: float) -> float:
        """What the step's products and dequantized weights take at these rates; the causal half of attention's products counted."""
        weights = 1.24e9 if case.small else 7.5e9
        attention = 0.0 if case.long is None else 3.5 * 2 * tokens**2 / case.rows * 4096 * 32
        dequantizing = 0.0 if case.small else 2 * 20e9 / self.copies
        return 1e3 * (((6 if case.full else 4) * weights * tokens + attention) / self.products + dequantizing)


def main() -> int:
    """Each case, each peer, a table's line as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=list(CASES), help="names of cases")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    limits = measure_limits()
    print(f"matrix products {limits.products / 1e12:.0f} TFLOP/s, copies {limits.copies / 1e12:.2f} TB/s")
    print(f"{'what':30s} {'step ms':>8s} {'floor':>7s} {'ratio':>6s} {'tokens':>7s} {'GiB':>6s} {'whole s':>8s}", flush=True)
    results: list[Result] = []
    jobs = [partial(ours, name, CASES[name], limits, arguments) for name in arguments.only]
    for job in [*jobs, *(partial(peer, *spec.split("=", 1), arguments.out) for spec in arguments.peer)]:
        results.append(job())
        print(results[-1], flush=True)
        content = {"limits": asdict(limits), "results": [asdict(one) for one in results]}
        (arguments.out / "benchmark.json").write_text(json.dumps(content, indent=1))
    return 0


def measure_limits() -> Limits:
    """In a process of its own, so that none of its memory is counted elsewhere."""
    code = """
import torch
def seconds(work, times):
    for _ in range(3): work()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(times): work()
    end.record(); torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3 / times
a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
b = torch.empty(2**30, dtype=torch.uint8, device="cuda"); c = torch.empty_like(b)
print(2 * 8192**3 / seconds(lambda: a @ a, 30), 2 * 2**30 / seconds(lambda: c.copy_(b), 30))
"""
    products, copies = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    return Limits(float(products), float(copies))


def ours(name: str, case: Case, limits: Limits, arguments: argparse.Namespace) -> Result:
    """Medians over the logged averages after the warm-up, from the run's own metrics.jsonl."""
    label = re.sub(r"\W+", "-", name)
    run = arguments.out / "runs" / label
    model = small_model(arguments) if case.small else arguments.model
    command = [sys.executable, "-m", "ltune", "fit", "--config", str(CONFIGURATION), "--run", str(run), "--model.model", str(model)]
    command += ["--data.folder", str(arguments.data), "--trainer.log_every_n_steps", str(case.every), *case.options]
    command += ["--trainer.max_steps", str(case.steps)] if case.steps else []
    command += long_rows(case, case.long, arguments) if case.long else []
    begin = time.monotonic()
    with (arguments.out / f"{label}.log").open("w") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode
    seconds = time.monotonic() - begin
    if code:
        return Result(f"ltune {name} (exit {code})", seconds=seconds)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = [line for line in lines if line["step"] > case.warm_up]
    if case.packed:
        most = max(map(tokens_of, timed))
        within = {line["step"] for before, line in pairwise(lines) if epoch_of(before, after=True) == epoch_of(line)}
        timed = [line for line in timed if line["step"] in within and tokens_of(line) > 0.97 * most]
    tokens = statistics.median(map(tokens_of, timed))
    return Result(
        f"ltune {name}",
        step_ms=1e3 * statistics.median(line["train/step_seconds"] for line in timed),
        tokens=tokens,
        gib=max(line["train/peak_memory_gib"] for line in lines),
        seconds=seconds,
        floor_ms=None if case.pairs else limits.floor_ms(case, tokens),
        losses=[line["train/loss"] for line in lines],
    )


def tokens_of(line: dict) -> float:
    """A step's."""
    return line["train/tokens_per_second"] * line["train/step_seconds"]


def epoch_of(line: dict, after: bool = False) -> int:
    """The epoch, from 1, that the step belongs to, or what comes right after it."""
    return math.floor(line["train/epoch"]) + 1 if after else math.ceil(line["train/epoch"])


def long_rows(case: Case, tokens: int, arguments: argparse.Namespace) -> list[str]:
    """Options for rows of so many tokens each: one long text, cut into blocks; uneven ones are answers."""
    source = arguments.data / "c4_demo.jsonl"
    text = "\n".join(json.loads(line)["text"] for line in source.read_text(encoding="utf-8").splitlines())
    file = arguments.out / f"long-{tokens}{'-uneven' * case.uneven}{'-pairs' * case.pairs}.jsonl"
    options = ["--data.datasets", f"[{file}]", "--data.max_length", str(tokens), "--data.batch_size", str(case.rows)]
    options += ["--trainer.accumulate_grad_batches", "1", "--trainer.max_epochs", "20"]
    if case.uneven:
        lengths = range(5 * tokens // 2, 7 * tokens // 2, tokens // 320)  # characters, about 4 a token
        texts = [(text * 2)[101 * n :][:length] for n, length in enumerate(lengths)]
        rows = [{"instruction": "Go on.", "output": one} for one in texts]
        if case.pairs:
            rows = [{"instruction": one[3000:], "chosen": one[:1500], "rejected": one[1500:3000]} for one in texts]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return options
    file.write_text(json.dumps({"text": text * (1 + 20 * case.rows * tokens // len(text))}) + "\n", encoding="utf-8")
    return [*options, "--model.objective", "Pretrain", "--data.template", "null"]


def small_model(arguments: argparse.Namespace) -> Path:
    """A random model of the shape of Llama-3.2-1B, with the other's tokenizer."""
    folder = arguments.out / "llama-1b"
    if not folder.is_dir():
        code = """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
torch.set_default_dtype(torch.bfloat16)
config = LlamaConfig(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
    head_dim=64, vocab_size=128256, max_position_embeddings=8192, rope_theta=500000.0, bos_token_id=0, eos_token_id=4, pad_token_id=6,
    tie_word_embeddings=True)
with torch.device("cuda"):
    model = LlamaForCausalLM(config)
model.save_pretrained(sys.argv[1])
"""
        subprocess.run([sys.executable, "-c", code, str(folder)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
            if (arguments.model / name).exists():
                shutil.copy(arguments.model / name, folder / name)
    return folder


def peer(name: str, command: str, out: Path) -> Result:
    """What the peer's own driver printed."""
    begin = time.monotonic()
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    (out / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}.log").write_text(done.stdout[-20000:] + done.stderr[-20000:])
    found = re.findall(r"median_ms ([\d.]+).*?peak_gib ([\d.]+)", done.stdout)
    seconds = time.monotonic() - begin
    if not found:
        return Result(f"{name} (exit {done.returncode})", seconds=seconds)
    return Result(name, step_ms=float(found[-1][0]), gib=float(found[-1][1]), seconds=seconds)


if __name__ == "__main__":
    sys.exit(main())
