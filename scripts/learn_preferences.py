"""Each method of preferences learns a preference it knows nothing of: `python scripts/learn_preferences.py [METHOD ...] [--image FILE]`.

The embedded model is trained on the embedded rows by each shipped configuration (configs/METHOD.yaml), and asked before and after
which answer of pairs that it has never seen is the better one: by the log-probability per token, and a reward model by its reward.
Prints a table in Markdown, and the seconds that each took.
"""

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

import torch
from preference_rows import BETTER, THINGS, WORSE, answer
from transformers import AutoModelForCausalLM, AutoTokenizer

from ltune import cli
from ltune.data.collate import Batch, collate
from ltune.data.encode import Encoder
from ltune.data.rows import Message, Pair
from ltune.data.templates import load_template
from ltune.models.heads import ValueHead
from ltune.models.tokenizer import EMBEDDED
from ltune.objectives.logprobs import sequence_logps, token_counts
from ltune.objectives.policy import Policy

METHODS = ["reward", "dpo", "simpo", "orpo", "cpo", "kto", "bco"]
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
PAIRS = 100
HERE = ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--data.val_size", "0", "--trainer.enable_progress_bar", "false"]


def held_out() -> Batch:
    """Pairs of the things that the training rows are about, in combinations drawn anew."""
    tokenizer = AutoTokenizer.from_pretrained(str(EMBEDDED))
    encoder = Encoder(load_template(None, tokenizer), tokenizer, max_length=200)
    draw, sequences = random.Random(99), []
    for _ in range(PAIRS):
        thing = draw.choice(THINGS)
        chosen, rejected = (Message("assistant", answer(draw, thing, words)) for words in (BETTER, WORSE))
        made = encoder.process(Pair("here:1", (Message("user", f"What is the {thing} like?"),), chosen, rejected))
        sequences += made.sequences
    return collate(sequences, tuple(range(PAIRS)), 1, PAIRS, flat=True, pad_id=0).tensors()


@torch.no_grad()
def accuracy(model: torch.nn.Module, batch: Batch, head: ValueHead | None = None) -> float:
    """Share of the pairs whose chosen answer is preferred."""
    policy = Policy(model, model)
    if head is not None:
        scores = head(policy.hidden(batch, batch.ends))
    else:
        scores = sequence_logps(policy.token_losses(batch), batch) / token_counts(batch)
    return float((scores[0::2] > scores[1::2]).float().mean())


def base() -> torch.nn.Module:
    """The embedded model."""
    return AutoModelForCausalLM.from_pretrained(str(EMBEDDED), dtype=torch.float32)


def before(method: str, batch: Batch) -> float:
    """Of the embedded model; with a head that has not learned anything yet."""
    model = base()
    torch.manual_seed(42)
    return accuracy(model, batch, ValueHead(model.config.hidden_size) if method == "reward" else None)


def after(method: str, folder: Path, batch: Batch) -> float:
    """Of what the run left."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(base(), str(folder)).merge_and_unload()
    return accuracy(model, batch, ValueHead.load(folder) if method == "reward" else None)


def learn(method: str, options: list[str]) -> dict:
    """One run, and what it changed."""
    batch, begun = held_out(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        code = cli.main(["fit", "--config", str(CONFIGS / f"{method}.yaml"), "--run", str(run), *HERE, *options])
        assert code == 0, f"{method}: ltune fit ended with {code}"
        seconds = time.perf_counter() - begun
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses = [line["train/loss"] for line in lines if "train/loss" in line]
        return {
            "curve": [(line["step"], margin) for line in lines if (margin := margin_of(line)) is not None],
            "steps": max(line["step"] for line in lines), "loss": (losses[0], losses[-1]), "seconds": seconds,
            "before": before(method, batch), "after": after(method, run / "adapter", batch),
        }  # fmt: skip


def margin_of(line: dict) -> float | None:
    """How far the better answers' rewards led in that step; of rated answers, where it had such of both kinds."""
    if (margin := line.get("train/margin", line.get("train/rewards/margins"))) is not None:
        return margin
    chosen, rejected = (line.get(f"train/rewards/{kind}") for kind in ("chosen", "rejected"))
    return None if chosen is None or rejected is None else chosen - rejected


def main() -> None:
    """All methods, or those named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", default=METHODS)
    parser.add_argument("--image", type=Path, default=None, help="gets the curves of the margins")
    arguments, options = parser.parse_known_args()
    curves = {}
    print("| objective | steps | loss, first and last | preferred before | after | seconds |\n| --- | --- | --- | --- | --- | --- |")
    for method in arguments.methods:
        found = learn(method, options)
        curves[method] = found["curve"]
        first, last = found["loss"]
        shown = f"{found['before']:.2f} | {found['after']:.2f} | {found['seconds']:.0f}"
        print(f"| {method} | {found['steps']} | {first:.3f}, {last:.3f} | {shown} |", flush=True)
    if arguments.image:
        draw(curves, arguments.image)


def draw(curves: dict[str, list[tuple[int, float]]], image: Path) -> None:
    """How far the better answers' rewards lead, step by step: as shares of each method's largest lead, whose sizes differ."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for method, curve in curves.items():
        steps, margins = zip(*curve, strict=True)
        largest = max(map(abs, margins))
        axes.plot(steps, [margin / largest for margin in margins], label=method)
    axes.axhline(0, color="0.8", linewidth=0.8)
    axes.set(xlabel="step", ylabel="margin of rewards / its largest")
    axes.legend()
    figure.tight_layout()
    figure.savefig(image, dpi=110)


if __name__ == "__main__":
    main()
