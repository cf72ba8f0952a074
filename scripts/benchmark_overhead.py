"""What the framework costs: the step of a real ``ltune fit`` less that of a bare PyTorch loop over the same model, rows and optimizer; and
that of Lightning's Trainer alone, with nothing around it.

    python scripts/benchmark_overhead.py [--steps 600] [--sets 3] [--profile FILE]

On the CPU, with one thread. All run in processes of their own, which take turns of 20 steps: what else the machine does meets them alike.
Each set has processes of its own, since one of them differs from the next by some tenths of a millisecond, for all its life. The bare loop
is as one writes it: its AdamW is torch's default, where a fit's is fused.
Compared are times between two optimizer steps, on the wall and in the processor (all threads; what other processes take away does not
count), and means of a whole turn, which have the logging of every tenth step in them. --profile writes what cProfile saw of the steps of
a fit instead.
"""

import argparse
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import cycle, islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

WARM_UP = 30  # steps
TURN = 20  # steps
FIT = {  # the defaults are the point: TensorBoard, metrics.jsonl, the progress display, logging as often as it comes
    "model": {"quantize": None, "adapter": "LoRA"},
    "data": {"datasets": ["quickstart"], "max_length": 64, "batch_size": 1},
    "checkpoint": {"every": 1_000_000},
    "trainer": {"accelerator": "cpu", "devices": 1, "precision": "32-true", "max_epochs": -1, "gradient_clip_val": 1.0},
}

Turn = list[tuple[float, float]]  # of each step: seconds on the wall, and in the processor


def main() -> None:
    """Turn by turn; the differences after each set."""
    arguments = parsed()
    os.environ["OMP_NUM_THREADS"] = "1"
    turns = arguments.steps // TURN
    if arguments.profile:
        Contestant("fit", turns, arguments.profile).finish(turns)
        return
    turns //= arguments.sets
    found: dict[str, list[Turn]] = {name: [] for name in LOOPS}
    for _ in range(arguments.sets):
        contestants = [Contestant(name, turns) for name in LOOPS]
        for number in range(turns):
            for one in contestants if number % 2 == 0 else reversed(contestants):
                found[one.name].append(one.turn())
        for one in contestants:
            one.process.join()
        show(found)


def show(found: dict[str, list[Turn]]) -> None:
    """A table of all turns so far."""
    print("| ms a step | bare | Lightning's over it: median of the turns | quietest | fit's over it: median | quietest |")
    print("|---|---:|---:|---:|---:|---:|")
    for kind, of_turn in KINDS.items():
        bare, *others = ([1000 * of_turn(turn) for turn in found[name]] for name in LOOPS)
        over = (f"{median_over(other, bare):.3f} | {min(other) - min(bare):.3f}" for other in others)
        print(f"| {kind} | {statistics.median(bare):.3f} |", " | ".join(over), "|")
    print(flush=True)


def median_over(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(mine - other for mine, other in zip(ours, theirs, strict=True))


KINDS = {
    "wall": lambda turn: statistics.median(wall for wall, _ in turn),
    "processor": lambda turn: statistics.median(processor for _, processor in turn),
    "processor, with logging": lambda turn: statistics.mean(processor for _, processor in turn),
}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--sets", type=int, default=3)
    parser.add_argument("--profile", metavar="FILE", help="write cProfile's statistics of a fit's steps")
    return parser.parse_args()


class Contestant:
    """A process that trains when it is its turn."""

    def __init__(self, name: str, turns: int, profile: str | None = None) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=steps_of, args=(name, turns, theirs, profile))
        self.process.start()
        theirs.close()  # so that a process that dies is noticed
        self.connection.recv()

    def turn(self) -> Turn:
        """Let it take its steps."""
        self.connection.send(None)
        return self.connection.recv()

    def finish(self, turns: int) -> None:
        """Let it take all of them."""
        for _ in range(turns):
            self.turn()
        self.process.join()


def steps_of(name: str, turns: int, connection: Connection, profile: str | None) -> None:
    """In a process of its own. In both, the clock is torch's hook behind each step."""
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    torch.set_num_threads(1)
    nowhere, seen = os.open(os.devnull, os.O_WRONLY), os.dup(2)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    ticks: Turn = []
    taken = 0
    profiler = Profiler(profile)

    def tick(optimizer: object, args: object, kwargs: object) -> None:
        nonlocal taken
        taken += 1
        ticks.append((time.perf_counter(), time.process_time()))
        if taken < WARM_UP or (taken - WARM_UP) % TURN:
            return
        profiler.end()
        connection.send([(after[0] - before[0], after[1] - before[1]) for before, after in zip(ticks, ticks[1:], strict=False)])
        if taken < WARM_UP + turns * TURN:
            connection.recv()
            profiler.begin()
        ticks[:] = [(time.perf_counter(), time.process_time())]

    register_optimizer_step_post_hook(tick)
    with tempfile.TemporaryDirectory() as folder:
        try:
            make_model(Path(folder) / "model")
            LOOPS[name](Path(folder), WARM_UP + turns * TURN)
        except BaseException:
            os.dup2(seen, 2)  # for the traceback
            raise
    profiler.write()


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
        self.profile.disable()

    def write(self) -> None:
        if self.file:
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

    batches, loss, trained, optimizer, schedule = parts(folder, steps)
    for batch in batches:
        loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def lightning(folder: Path, steps: int) -> None:
    """The same by a Trainer that logs, shows and saves nothing."""
    import torch
    from lightning.pytorch import LightningModule, Trainer

    batches, loss, trained, optimizer, schedule = parts(folder, steps)

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.trained = torch.nn.ParameterList(trained)

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return loss(batch)

        def transfer_batch_to_device(self, batch: Any, *_: Any) -> Any:
            return batch

        def configure_optimizers(self) -> dict[str, Any]:
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    nothing = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", devices=1, max_steps=steps, gradient_clip_val=1.0, default_root_dir=folder, **nothing)
    trainer.fit(Module(), torch.utils.data.DataLoader(batches, batch_size=None))


def parts(folder: Path, steps: int) -> tuple[list[Any], Callable[[Any], Any], list[Any], Any, Any]:
    """As many batches as steps, what gives the loss of one, what is trained, by which optimizer and schedule."""
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
    epoch = [batch.tensors() for window in sampler for batch in read[window].batches()]
    device = torch.device("cpu")
    options = {"quantize": None, "attention": None, "revision": None, "trust_remote_code": None}
    base = load_model(str(folder / "model"), dtype=torch.float32, device=device, **options)
    model = LoRA().apply(base).train()
    policy, objective = Policy(model, forward_of=base), SFT()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-5, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: Cosine().factor(step, steps))
    return list(islice(cycle(epoch), steps)), lambda batch: objective.loss(policy, batch).loss, trained, optimizer, schedule


LOOPS = {"bare": bare, "lightning": lightning, "fit": fit}


if __name__ == "__main__":
    main()
