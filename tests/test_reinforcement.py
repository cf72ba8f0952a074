"""PPO, GRPO and RLOO through `ltune fit`, in 4 bits: rollouts, exact resume within one, rewards that fail, two processes."""

import json
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from ltune.cli import main
from ltune.models.fast import build
from ltune.module import FineTuner

REWARDS = [
    {"class_path": "Matches", "init_args": {"pattern": "[A-Z ]+[.!]?", "weight": 2.0}},
    {"class_path": "Length", "init_args": {"target": 4, "weight": 0.5}},
]
SAMPLING = {"max_new_tokens": 6, "temperature": 0.9}
OBJECTIVES = {
    "GRPO": {"answers": 3, "iterations": 2, "kl": 0.1, "clip_high": 0.28, "normalize": "answers"},
    "RLOO": {"answers": 2, "mini_batches": 2},
    "PPO": {"answers": 2, "iterations": 2, "mini_batches": 2, "normalize_scores": True},
}


def configuration(name: str, layout: str = "flat", **changes) -> dict:
    arguments = {"rewards": REWARDS, "sampling": SAMPLING, **OBJECTIVES[name], **changes}
    return {
        "run": "run",
        "model": {
            "objective": {"class_path": name, "init_args": arguments},
            "adapter": {"class_path": "LoRA", "init_args": {"rank": 4, "alpha": 8}},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}},
        },
        "data": {"datasets": ["quickstart_prompts"], "max_rows": 8, "batch_size": 2, "layout": layout},
        "checkpoint": {"every": 1, "keep": 9},
        "trainer": {
            "max_steps": 6, "max_epochs": -1, "accumulate_grad_batches": 2, "accelerator": "cpu", "precision": "32-true",
            "log_every_n_steps": 1, "enable_progress_bar": False, "logger": True,
        },
    }  # fmt: skip


@pytest.fixture
def fit(tmp_path, monkeypatch):
    """Run `ltune fit` in this process; its exit code."""
    monkeypatch.chdir(tmp_path)

    def run(settings: dict, *options: str) -> int:
        Path("config.yaml").write_text(yaml.safe_dump(settings))
        return main(["fit", "--config", "config.yaml", *options])

    return run


def adapter(run: str) -> dict:
    return {path.name: load_file(path) for path in Path(run, "adapter").glob("*.safetensors")}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        tensors.keys() == other[file].keys() and all(tensor.equal(other[file][name]) for name, tensor in tensors.items())
        for file, tensors in one.items()
    )


def without_times(lines: list[dict]) -> list[dict]:
    times = ("seconds", "per_second", "memory")
    return [{name: value for name, value in line.items() if not any(word in name for word in times)} for line in lines]


@pytest.mark.parametrize(("name", "layout"), [("GRPO", "flat"), ("GRPO", "padded"), ("RLOO", "flat"), ("PPO", "padded"), ("PPO", "flat")])
def test_it_trains_and_goes_on_exactly_from_within_a_rollout(name, layout, fit, metrics, monkeypatch, capsys):
    whole = configuration(name, layout)
    assert fit(whole, "--run", "whole") == 0
    lines = metrics(Path("whole"))
    assert [line["step"] for line in lines] == list(range(1, 7))
    logged = {
        *("train/reward", "train/reward_std", "train/frac_reward_zero_std", "train/rewards/Matches/mean", "train/rewards/Length/std"),
        *("train/completions/mean_length", "train/completions/clipped_ratio", "train/seconds/generate", "train/seconds/train"),
        *(("train/objective/kl", "train/policy/clipfrac_avg", "train/loss/value_avg") if name == "PPO" else ()),
        *(("train/kl", "train/clip_ratio/region_mean", "train/entropy") if name != "PPO" else ()),
    }
    assert logged <= lines[0].keys()
    assert all(None not in line.values() for line in lines)
    told = [json.loads(line) for line in Path("whole/rollouts.jsonl").read_text().splitlines()]
    steps = {"GRPO": [1, 3, 5], "RLOO": [1, 3, 5], "PPO": [1, 5]}[name]
    assert [line["step"] for line in told] == [step for step in steps for _ in range(4 * OBJECTIVES[name]["answers"])]
    first = [line["reward"] for line in told if line["step"] == 1]
    assert lines[0]["train/reward"] == pytest.approx(sum(first) / len(first), abs=1e-5)
    for line in told:
        assert line["reward"] == pytest.approx(2 * line["rewards"]["Matches"] + 0.5 * line["rewards"]["Length"], abs=1e-5)

    train = FineTuner.training_step

    def killed(self, step, number):
        if self.trainer.global_step == 3:
            raise RuntimeError("killed")
        return train(self, step, number)

    with monkeypatch.context() as patched:
        patched.setattr(FineTuner, "training_step", killed)
        with pytest.raises(RuntimeError, match="killed"):
            fit(whole, "--run", "killed")
    assert not Path("killed/adapter").exists()
    assert fit(whole, "--run", "killed") == 0
    assert "resuming killed after step 3" in capsys.readouterr().err
    assert same(adapter("whole"), adapter("killed"))
    assert without_times(metrics(Path("killed"))) == without_times(lines)
    assert Path("killed/rollouts.jsonl").read_text() == Path("whole/rollouts.jsonl").read_text()


def test_the_quick_way_is_the_same_run(fit, metrics, monkeypatch):
    """With ltune's own layers, their decoder among them, allowed on the CPU."""
    for name in ("GRPO", "PPO"):
        settings = configuration(name)
        assert fit(settings, "--run", f"plain-{name}") == 0
        with monkeypatch.context() as patched:
            patched.setattr(build, "_require_device", lambda *arguments: None)
            assert fit(settings, "--run", f"quick-{name}", "--model.memory", "speed") == 0
        plain, quick = metrics(Path(f"plain-{name}")), metrics(Path(f"quick-{name}"))
        assert [line["train/loss"] for line in quick] == pytest.approx([line["train/loss"] for line in plain], abs=1e-4)
        assert json.loads(Path(f"quick-{name}/memory.json").read_text())["tokens"] > 0


def test_two_processes_train_as_one(ltune, metrics, tmp_path):
    settings = configuration("GRPO", checkpoint={})
