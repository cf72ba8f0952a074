#!/usr/bin/env python3
"""Measure the peak memory of short real runs on one GPU, for scripts/plan_accuracy.py to compare plans with.

    python scripts/measure_memory.py --model FOLDER --data FOLDER --out FOLDER [--only NAME ...]

FOLDER of the model: a Llama-3-8B (random weights do). All runs in one process, a few steps each, so that imports are paid once; what needs
most memory is rehearsed before the first of them. Writes measured.json after each run, so that what was measured is there even if a later
run does not end; with --seconds none begins later than that. The runs that tell most come first.
"""

import argparse
import gc
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent))
from benchmark import CONFIGURATION, FULL, LEAST, NO_LORA_PLUS, PLAIN, W1, W2, long_rows, small_model

CHECKPOINTING = ["--model.gradient_checkpointing", "true"]
STEPS = 4
SHORT = {"8B W1": 40}  # steps as short as these are captured in graphs when a size comes the second time, which is part of the peak


def tokens(count: int) -> list[str]:
    """A step of so many tokens."""
    return [*W1, "--data.tokens_per_batch", str(count), "--trainer.accumulate_grad_batches", "1", "--trainer.max_epochs", "20"]


def cases(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """Options on top of the walk-through's configuration."""
    places = SimpleNamespace(model=arguments.model, data=arguments.data, out=arguments.out)
    small = ["--model.model", str(small_model(places))]  # type: ignore[arg-type]  # it takes the parsed arguments
    return {
        "8B W1": W1,
        "1B full W2": [*small, *FULL],
        "8B W2": W2,
        "8B W2 least": [*W2, *LEAST],
        "8B W1 plain": [*W1, *PLAIN],
        "8B W1 plain, checkpointing": [*W1, *PLAIN, *CHECKPOINTING],
        "8B one row of 32,768": [*W1, *long_rows(32768, places)],  # type: ignore[arg-type]
        "1B full W2, checkpointing": [*small, *FULL, *CHECKPOINTING],
        "1B LoRA W2": [*small, *W2, *NO_LORA_PLUS],
        "1B full 2 x 4": [*small, *W1, *NO_LORA_PLUS, "--model.adapter", "Full"],
        "8B W2, checkpointing": [*W2, *CHECKPOINTING],
        "8B W2, rank 64": [*W2, "--model.adapter.rank", "64", "--model.adapter.alpha", "128"],
        "8B 16,384 tokens": tokens(16384),
        "8B W1 least": [*W1, *LEAST],
        "8B 4,096 tokens": tokens(4096),
    }


def main() -> int:
    """A run, a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which no run begins")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    wanted = {name: options for name, options in cases(arguments).items() if arguments.only is None or name in arguments.only}
    measured, begin = [], time.monotonic()
    for name, options in wanted.items():
        if time.monotonic() - begin > arguments.seconds:
            print(f"{name:28} not begun, as {arguments.seconds:.0f} s are over")
            continue
        measured.append(measure(name, options, arguments) if len(wanted) == 1 else measure_apart(name, arguments))
        (arguments.out / "measured.json").write_text(json.dumps(measured, indent=1))
    return 0


def measure_apart(name: str, arguments: argparse.Namespace) -> dict:
    """One run in a process of its own, so that nothing of another one counts."""
    out = arguments.out / name.replace(" ", "-").replace(",", "")
    command = [sys.executable, __file__, "--model", str(arguments.model), "--data", str(arguments.data), "--out", str(out), "--only", name]
    subprocess.run(command, check=True)
    (found,) = json.loads((out / "measured.json").read_text())
    return found


def measure(name: str, options: list[str], arguments: argparse.Namespace) -> dict:
    """One run in this process; its log goes to a file."""
    import torch

    from ltune import cli

    run = arguments.out / name.replace(" ", "-").replace(",", "")
    shutil.rmtree(run, ignore_errors=True)  # a finished run would not run again
    shared = ["--config", str(CONFIGURATION), "--model.model", str(arguments.model), "--data.folder", str(arguments.data), *options]
    asked = ["--run", str(run), "--trainer.max_steps", str(SHORT.get(name, STEPS)), "--trainer.log_every_n_steps", "1"]
    before = torch.cuda.memory_allocated() / 2**30  # left over by the runs before; nothing, if all goes well
    torch.cuda.reset_peak_memory_stats()
    begin = time.monotonic()
    with Path(f"{run}.log").open("w+") as log:
        kept = [os.dup(number) for number in (1, 2)]
        for number in (1, 2):
            os.dup2(log.fileno(), number)
        try:
            code = cli.main(["fit", *shared, *asked])
        finally:
            sys.stdout.flush()
            for number, descriptor in enumerate(kept, 1):
                os.dup2(descriptor, number)
                os.close(descriptor)
        peak = torch.cuda.max_memory_allocated() / 2**30
        log.seek(0)
        said = log.read()
    metrics, setting = run / "metrics.jsonl", run / "memory.json"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()] if code == 0 else []
    seconds = statistics.median(line["train/step_seconds"] for line in lines[1:]) if len(lines) > 1 else None
    found = {
        "name": name,
        "options": [*shared, "--memory", f"{torch.cuda.mem_get_info()[1] / 2**30:.1f}GiB"],
        "measured_gib": peak,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
        "left_over_gib": before,
        "loading_gib": max(map(float, re.findall(r"([\d.]+) while loading", said)), default=None),
        "setting": json.loads(setting.read_text()) if setting.exists() else None,
        "gave_up": said.count("the GPU's memory was full"),
        "step_seconds": seconds,
        "seconds": time.monotonic() - begin,
        "exit": code,
    }
    print(f"{name:28} exit {code}  {peak:7.2f} GiB  {1e3 * (seconds or 0):8.1f} ms a step  {found['seconds']:6.1f} s", flush=True)
    if code:
        print("    " + "\n    ".join(said.splitlines()[-8:]), flush=True)
    shutil.rmtree(run, ignore_errors=True)
    gc.unfreeze()  # where a run broke off
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return found


if __name__ == "__main__":
    sys.exit(main())
