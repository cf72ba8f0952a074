#!/usr/bin/env python3
"""Time the walk-through's step through the real `ltune fit`, and peers beside it in the same visit to the machine.

    python scripts/benchmark.py --model FOLDER --data FOLDER --out FOLDER [--steps 40] [--peer 'NAME=COMMAND' ...]

Prints one table and writes it as benchmark.json. A peer's command prints a line with `median_ms X` and `peak_gib Y`, as its last such line.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

WARM_UP = 10
CONFIGURATION = Path(__file__).resolve().parents[1] / "configs" / "llama3_lora_sft.yaml"
# name: options on top of the walk-through's configuration
VARIANTS = {
    "walk-through, bf16-true": ["--trainer.precision", "bf16-true"],
    "walk-through, 16-mixed": ["--trainer.precision", "16-mixed"],
    "8 rows x 1, bf16-true": ["--trainer.precision", "bf16-true", "--data.batch_size", "8", "--trainer.accumulate_grad_batches", "1"],
    "walk-through, padded": ["--trainer.precision", "bf16-true", "--data.layout", "padded"],
    "walk-through, checkpointing": ["--trainer.precision", "bf16-true", "--model.gradient_checkpointing", "true"],
}


def main() -> int:
    """Each variant, each peer, one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--only", nargs="*", default=None, help="names of variants")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = [ours(name, options, arguments) for name, options in VARIANTS.items() if arguments.only is None or name in arguments.only]
    results += [peer(*spec.split("=", 1), arguments.out) for spec in arguments.peer]
    (arguments.out / "benchmark.json").write_text(json.dumps(results, indent=1))
    print(f"{'what':34s} {'step ms':>8s} {'tokens/s':>9s} {'GiB':>6s} {'whole s':>8s}")
    for one in results:
        columns = (("step_ms", 8, 1), ("tokens_per_second", 9, 0), ("gib", 6, 1), ("seconds", 8, 0))
        print(f"{one['what']:34s}", *(shown(one, *column) for column in columns))
    return 0


def ours(name: str, options: list[str], arguments: argparse.Namespace) -> dict:
    """Medians over the steps after the warm-up, from the run's own metrics.jsonl."""
    label = re.sub(r"\W+", "-", name)
    run = arguments.out / "runs" / label
    command = [sys.executable, "-m", "ltune", "fit", "--config", str(CONFIGURATION), "--run", str(run), "--model.model", arguments.model]
    command += ["--data.folder", arguments.data, "--trainer.max_steps", str(arguments.steps), "--trainer.log_every_n_steps", "1", *options]
    begin = time.monotonic()
    with (arguments.out / f"{label}.log").open("w") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode
    seconds = time.monotonic() - begin
    if code:
        return {"what": f"ltune: {name} (exit {code})", "seconds": seconds}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = [line for line in lines if line["step"] > WARM_UP]
    return {
        "what": f"ltune: {name}",
        "step_ms": statistics.median(8e3 / line["train/samples_per_second"] for line in timed),
        "tokens_per_second": statistics.median(line["train/tokens_per_second"] for line in timed),
        "gib": max(line["train/peak_memory_gib"] for line in lines),
        "seconds": seconds,
        "losses": [line["train/loss"] for line in lines],
    }


def peer(name: str, command: str, out: Path) -> dict:
    """What the peer's own driver printed."""
    begin = time.monotonic()
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    (out / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}.log").write_text(done.stdout[-20000:] + done.stderr[-20000:])
    found = re.findall(r"median_ms ([\d.]+).*?peak_gib ([\d.]+)", done.stdout)
    result = {"what": name if found else f"{name} (exit {done.returncode})", "seconds": time.monotonic() - begin}
    return result | ({"step_ms": float(found[-1][0]), "gib": float(found[-1][1])} if found else {})


def shown(result: dict, key: str, width: int, digits: int) -> str:
    return f"{result[key]:{width}.{digits}f}" if key in result else " " * (width - 1) + "-"


if __name__ == "__main__":
    sys.exit(main())
