"""What the framework costs: the step of a real ``ltune fit`` less that of a bare PyTorch loop over the same model, rows and optimizer.

    python scripts/benchmark_overhead.py [--steps 300] [--repeats 5] [--profile FILE]

On the CPU, with one thread. Both run in processes of their own, in turn; what is compared is the median time between two optimizer steps,
on the wall and in the processor (all threads; what other processes take away does not count). The mean of ten steps has the logging of
every tenth in it. --profile writes what cProfile saw of the steps of a fit instead.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

WARM_UP = 30  # steps
FIT = {  # the defaults are the point: TensorBoard, metrics.jsonl, the progress display, logging as often as it comes
    "model": {"quantize": None, "adapter": "LoRA"},
    "data": {"datasets": ["quickstart"], "max_length": 64, "batch_size": 1},
    "checkpoint": {"every": 1_000_000},
    "trainer": {"accelerator": "cpu", "devices": 1, "precision": "32-true", "max_epochs": -1, "gradient_clip_val": 1.0},
}


def main() -> None:
    """Both in turn, then the differences."""
    arguments = parsed()
    if arguments.one:
        print(json.dumps(steps_of(arguments.one, arguments.steps + WARM_UP, arguments.profile)))
        return
    if arguments.profile:
        in_a_process("fit", arguments.steps, arguments.profile)
        return
    found: dict[str, list[dict[str, float]]] = {"bare": [], "fit": []}
    for number in range(arguments.repeats):
        for name in ("bare", "fit") if number % 2 == 0 else ("fit", "bare"):
            found[name].append(in_a_process(name, arguments.steps))
        print(f"repeat {number + 1}:", *(f"{name} {one(found[name][-1])}" for name in found), sep="  ", flush=True)
    print("\n| ms a step | bare | fit | overhead, median | overhead, quietest repeats |\n|---|---:|---:|---:|---:|")
    for kind in found["bare"][0]:
        bare, fit = ([times[kind] for times in found[name]] for name in ("bare", "fit"))
        over = statistics.median(fast - slow for fast, slow in zip(fit, bare, strict=True))
        print(f"| {kind} | {statistics.median(bare):.3f} | {statistics.median(fit):.3f} | {over:.3f} | {min(fit) - min(bare):.3f} |")


def one(times: dict[str, float]) -> str:
    return ", ".join(f"{kind} {value:.2f}" for kind, value in times.items())


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--profile", metavar="FILE", help="write cProfile's statistics of a fit's steps")
    parser.add_argument("--one", choices=("bare", "fit"), help=argparse.SUPPRESS)  # the process that is measured
    return parser.parse_args()


def in_a_process(name: str, steps: int, profile: str | None = None) -> dict[str, float]:
    """Milliseconds a step."""
    command = [sys.executable, __file__, "--one", name, "--steps", str(steps), *(["--profile", profile] if profile else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    wall, processor = zip(*json.loads(done.stdout.splitlines()[-1]), strict=True)
    return {
        "wall": statistics.median(wall) * 1000,
        "processor": statistics.median(processor) * 1000,
        "processor, with logging": statistics.median(statistics.mean(ten) for ten in batched(processor, 10)) * 1000,
    }


def batched(values: Sequence[float], size: int) -> Iterator[Sequence[float]]:
    return (values[begin : begin + size] for begin in range(0, len(values), size))


def steps_of(name: str, steps: int, profile: str | None) -> list[tuple[float, float]]:
    """Seconds of each step after the warm-up, on the wall and in the processor. In both, the clock is torch's hook behind each step."""
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    torch.set_num_threads(1)
    clock: list[tuple[float, float]] = []
    profiler = Profiler(profile)

    def tick(optimizer: object, args: object, kwargs: object) -> None:
        clock.append((time.perf_counter(), time.process_time()))
        if len(clock) == WARM_UP:
            profiler.begin()
        elif len(clock) == steps:
            profiler.end()

    register_optimizer_step_post_hook(tick)
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder) / "model")
        {"bare": bare, "fit": fit}[name](Path(folder), steps)
    steps_taken = zip(clock[WARM_UP - 1 :], clock[WARM_UP:], strict=False)
    return [(after[0] - before[0], after[1] - before[1]) for before, after in steps_taken]


def make_model(folder: Path) -> None:
    """The embedded model with one narrow layer: the less it computes, the better is seen what is around it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from ltune.models.tokenizer import EMBEDDED

    shutil.copytree(EMBEDDED, folder)
    config = AutoConfig.from_pretrained(EMBEDDED, num_hidden_layers=1, hidden_size=64, intermediate_size=128, head_dim=16)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


class Profiler:
    """cProfile from step to step."""

    def __init__(self, file: str | None) -> None:
        import cProfile

        self.file, self.profile = file, cProfile.Profile()

    def begin(self) -> None:
        if self.file:
            self.profile.enable()

    def end(self) -> None:
        if self.file:
            self.profile.disable()
            self.profile.dump_stats(self.file)


def fit(folder: Path, steps: int) -> None:
    """The command as a user gives it."""
    import yaml

    from ltune.cli import main as ltune

    file = folder / "overhead.yaml"
    file.write_text(yaml.safe_dump({"run": str(folder / "run"), **FIT}))
    code = ltune(["fit", "--config", str(file), "--model.model", str(folder / "model"), "--trainer.max_steps", str(steps)])
    assert code == 0, code


def bare(folder: Path, steps: int) -> None:
    """Model, loss, backward, clip, step; the batches lie ready."""
    import torch

    from ltune.data.encode import Encoder
    from ltune.data.prepared import prepare
    from ltune.data.rows import Chat
    from ltune.data.sampler import WindowSampler
    from ltune.data.split import Batches, Split
    from ltune.data.templates import load_template
    from ltune.models.adapters import LoRA
    from ltune.models.load import load_model
    from ltune.models.tokenizer import load_tokenizer
    from ltune.objectives import SFT
    from ltune.objectives.policy import Policy
    from ltune.optim.schedules import Cosine

    tokenizer = load_tokenizer(str(folder / "model"))
    encoder = Encoder(load_template(None, tokenizer), tokenizer, max_length=FIT["data"]["max_length"])
    rows = prepare(["quickstart"], folder, rows=Chat, encoder=encoder, cache=folder / "cache")
    read = Batches(Split.whole(rows), flat=True, pad_id=tokenizer.pad_token_id)
    sampler = WindowSampler(rows.trained, seed=42, batch_size=1, accumulate=1, rank=0, world_size=1)
    device = torch.device("cpu")
    options = {"quantize": None, "attention": None, "revision": None, "trust_remote_code": None}
    base = load_model(str(folder / "model"), dtype=torch.float32, device=device, **options)
    model = LoRA().apply(base).train()
    policy, objective = Policy(model, forward_of=base), SFT()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-5, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: Cosine().factor(step, steps))
    done = 0
    while done < steps:
        batches = [batch.tensors() for window in sampler for batch in read[window].batches()]
        for batch in batches[: steps - done]:
            objective.loss(policy, batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            done += 1


if __name__ == "__main__":
    main()
