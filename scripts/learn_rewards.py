"""Do PPO, GRPO and RLOO learn? Runs the shipped configurations on the embedded model and draws the mean reward of each rollout.

python scripts/learn_rewards.py --folder /tmp/learned --image docs/images/rewards.png

Prints a table: the mean reward of the first rollout, of the last epoch's rollouts, and of the held-out prompts before and after; and the
time of the whole command. Exit code 1 where a method does not get from below 0.3 to above 0.9.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).resolve().parents[1]
EPOCHS = {"grpo": 2, "rloo": 2, "ppo": 3}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--folder", type=Path, required=True, help="gets a run folder for each method")
    parser.add_argument("--image", type=Path, default=None, help="gets the curves")
    parser.add_argument("--methods", nargs="+", default=list(EPOCHS), choices=list(EPOCHS))
    arguments = parser.parse_args()
    curves, learned = {}, True
    columns = ["method", "first rollout", "last epoch", "held out, before", "held out, after", "steps", "seconds", "of a core"]
    print(row(columns), row(["---"] * len(columns)), sep="\n")
    for method in arguments.methods:
        run, seconds, processor = trained(method, arguments.folder / method)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        curves[method] = [(line["step"], line["train/reward"]) for line in lines if "train/reward" in line]
        first = curves[method][0][1]
        last = mean([line["train/reward"] for line in lines if line.get("train/epoch", 0) > EPOCHS[method] - 1])
        before, after = held_out(method, arguments.folder), next(line["val/reward"] for line in lines[::-1] if "val/reward" in line)
        learned &= before < 0.3 and last > 0.9 and after > 0.9
        rewards = [f"{reward:.2f}" for reward in (first, last, before, after)]
        print(row([method.upper(), *rewards, str(lines[-1]["step"]), f"{seconds:.0f}", f"{processor:.0f}"]), flush=True)
    if arguments.image:
        draw(curves, arguments.image)
    return 0 if learned else 1


def row(cells: list[str]) -> str:
    """Of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def ltune(*words: object) -> str:
    """What the command says."""
    command = [sys.executable, "-m", "ltune", *map(str, words), "--trainer.accelerator", "cpu"]
    return subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout


def trained(method: str, run: Path) -> tuple[Path, float, float]:
    """The run folder, the seconds that it took, and those of a core (other programs may run beside it)."""
    begin, before = time.monotonic(), used()
    ltune("fit", "--config", ROOT / "configs" / f"{method}.yaml", "--run", run.absolute(), "--trainer.max_epochs", EPOCHS[method])
    return run, time.monotonic() - begin, used() - before


def used() -> float:
    """Seconds of a core, by processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def held_out(method: str, folder: Path) -> float:
    """The mean reward of the untrained model's answers to the held-out prompts."""
    said = ltune("validate", "--config", ROOT / "configs" / f"{method}.yaml", "--run", (folder / f"{method}-before").absolute())
    return float(next(line.split("│")[2] for line in said.splitlines() if "val/reward " in line.replace("│", " ")))


def draw(curves: dict[str, list[tuple[int, float]]], image: Path) -> None:
    """Reward by optimizer step."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    for method, points in curves.items():
        axes.plot(*zip(*points, strict=True), label=method.upper())
    axes.set(xlabel="optimizer step", ylabel="mean reward of the rollout", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(image, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
