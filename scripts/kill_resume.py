#!/usr/bin/env python3
"""Kill `ltune fit` at random instants and start it again by the same command: the final adapter must be the undisturbed run's, bit for bit.

    python scripts/kill_resume.py                         # 30 x SIGKILL (every third inside a save), 10 x SIGTERM
    python scripts/kill_resume.py --kills 4 --terms 2 --seed 1

Each trial has a run folder and a temporary folder of its own; both must hold nothing left over in the end.
Prints one line a trial, exits 1 if any failed.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

CONFIGURATION = """
seed_everything: 7
model:
  model: tiny
  adapter: {class_path: LoRA, init_args: {rank: 4, alpha: 8, dropout: 0.1}}
  optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1.0e-3}}
data: {datasets: [quickstart], max_rows: 70, batch_size: 2, max_length: 128}
checkpoint: {every: 1, keep: 2}
trainer: {max_epochs: 3, accumulate_grad_batches: 3, accelerator: cpu, precision: 32-true, log_every_n_steps: 1}
"""


@dataclass
class Trial:
    """One run that is killed and started again."""

    number: int
    kind: str  # kill, kill-in-save, term
    workers: int
    folder: Path
    instant: float  # share of the training's duration
    codes: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)

    @property
    def run(self) -> Path:
        return self.folder / "run"


def main() -> int:
    """Baseline, trials, verdicts."""
    arguments = parse()
    work = Path(tempfile.mkdtemp(prefix="ltune-kill-"))
    (work / "config.yaml").write_text(CONFIGURATION)
    baseline, seconds = train_undisturbed(work)
    print(f"undisturbed: {seconds:.1f} s, adapter {baseline[:16]}", flush=True)
    chance = random.Random(arguments.seed)
    kinds = ["kill-in-save" if number % 3 == 2 else "kill" for number in range(arguments.kills)] + ["term"] * arguments.terms
    trials = [
        Trial(number, kind, 2 if number % 4 == 3 else 0, work / f"trial-{number}", chance.random()) for number, kind in enumerate(kinds)
    ]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        failed = sum(not good for good in pool.map(lambda trial: judge(trial, work, baseline), trials))
    print(f"{len(trials) - failed} of {len(trials)} exact")
    shutil.rmtree(work)
    return 1 if failed else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--terms", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="trials at a time")
    return parser.parse_args()


def train_undisturbed(work: Path) -> tuple[str, float]:
    """The adapter's hash, and how long training took from its first step to its last."""
    trial = Trial(-1, "none", 0, work / "undisturbed", 0)
    process = start(trial, work)
    wait_for_training(trial, process)
    begin = time.monotonic()
    code = process.wait()
    assert code == 0, (trial.folder / "log.txt").read_text()
    return adapter_hash(trial), time.monotonic() - begin


def judge(trial: Trial, work: Path, baseline: str) -> bool:
    """Run the trial to its end and say what came out."""
    disturb(trial, work)
    while trial.codes[-1] != 0 and len(trial.codes) < 4:
        trial.codes.append(start(trial, work).wait())
    finished = trial.codes[-1] == 0
    problems = [] if finished else [f"did not finish: {(trial.folder / 'log.txt').read_text()[-500:]}"]
    if finished and adapter_hash(trial) != baseline:
        problems.append("another adapter")
    problems += left_over(trial)
    expected = {"kill": -signal.SIGKILL, "kill-in-save": -signal.SIGKILL, "term": 128 + signal.SIGTERM}[trial.kind]
    if trial.codes[0] not in (expected, 0):
        problems.append(f"exit code {trial.codes[0]}, not {expected}")
    where = f"after step {trial.steps[0]}" if trial.steps else "before the first step"
    stopped = f"workers {trial.workers} stopped {where:22s} codes {trial.codes}"
    print(f"trial {trial.number:2d} {trial.kind:12s} {stopped} {'; '.join(problems) or 'exact'}", flush=True)
    if not problems:
        shutil.rmtree(trial.folder)
    return not problems


def disturb(trial: Trial, work: Path) -> None:
    """Start, and stop at the trial's instant: a share of the training's steps, or as soon after it as a save is under way."""
    process = start(trial, work)
    wait_for_training(trial, process)
    total = 36
    while process.poll() is None and steps_done(trial) < trial.instant * total:
        time.sleep(0.001)
    if trial.kind == "kill-in-save":
        while process.poll() is None and not list((trial.run / "checkpoints").glob(".*.tmp-*")):
            time.sleep(0.0002)
    else:
        time.sleep(random.random() * 0.3)
    trial.steps.append(steps_done(trial))
    if process.poll() is None:
        if trial.kind == "term":
            process.send_signal(signal.SIGTERM)
        else:
            os.killpg(process.pid, signal.SIGKILL)
    trial.codes.append(process.wait())


def start(trial: Trial, work: Path) -> subprocess.Popen:
    """The same command each time."""
    temporary = trial.folder / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "TMPDIR": str(temporary),
        "XDG_CACHE_HOME": str(work / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        "-m",
        "ltune",
        "fit",
        "--config",
        str(work / "config.yaml"),
        "--run",
        str(trial.run),
        "--data.workers",
        str(trial.workers),
    ]
    log = (trial.folder / "log.txt").open("a")
    return subprocess.Popen(command, cwd=work, stdout=log, stderr=log, env=environment, start_new_session=True)


def wait_for_training(trial: Trial, process: subprocess.Popen) -> None:
    """Until the first checkpoint is on disk."""
    while process.poll() is None and steps_done(trial) == 0:
        time.sleep(0.01)


def steps_done(trial: Trial) -> int:
    """The newest checkpoint's step."""
    return max((int(folder.name[5:]) for folder in (trial.run / "checkpoints").glob("step-*")), default=0)


def adapter_hash(trial: Trial) -> str:
    return hashlib.sha256((trial.run / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def left_over(trial: Trial) -> list[str]:
    """What should not be there once the run is finished."""
    hidden = [str(path.relative_to(trial.run)) for path in trial.run.rglob(".*")]
    temporary = [path.name for path in (trial.folder / "tmp").iterdir()]
    checkpoints = sorted(path.name for path in (trial.run / "checkpoints").iterdir())
    problems = [f"left over in the run folder: {hidden}"] if hidden else []
    problems += [f"left over in the temporary folder: {temporary}"] if temporary else []
    problems += [f"checkpoints: {checkpoints}"] if len(checkpoints) != 3 else []  # two and `latest`
    steps = [json.loads(line)["step"] for line in (trial.run / "metrics.jsonl").read_text().splitlines()]
    problems += [f"metrics.jsonl has steps {steps}"] if steps != sorted(set(steps)) or len(steps) != 36 else []
    return problems


if __name__ == "__main__":
    sys.exit(main())
