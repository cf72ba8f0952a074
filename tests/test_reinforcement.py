"""PPO, GRPO and RLOO through `ltune fit`, in 4 bits: rollouts, exact resume within one, rewards that fail, two processes."""

import json
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from ltune.cli import main
from ltune.models.fast import build
from ltune.module import FineTuner

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
REWARDS = [
    {"class_path": "Matches", "init_args": {"pattern": "[A-Z ]+[.!]?", "weight": 2.0}},
    {"class_path": "Length", "init_args": {"target": 4, "weight": 0.5}},
]
SAMPLING = {"max_new_tokens": 6, "temperature": 0.9}
OBJECTIVES = {
    "GRPO": {"answers": 3, "iterations": 2, "kl": 0.1, "clip_high": 0.28, "normalize": "answers"},
    "RLOO": {"answers": 2, "mini_batches": 2},
    "PPO": {"answers": 2, "iterations": 1, "mini_batches": 2, "normalize_scores": True},
}


def configuration(name: str, layout: str = "flat", **changes) -> dict:
    """The shipped one, on eight prompts, two to a micro-batch."""
    settings = yaml.safe_load((CONFIGS / f"{name.lower()}.yaml").read_text())
    assert settings["model"]["quantize"] == "NF4"
    arguments = {"rewards": REWARDS, "sampling": SAMPLING, **OBJECTIVES[name], **changes}
    settings["model"]["objective"]["init_args"] |= arguments
    settings["data"] |= {"max_rows": 8, "batch_size": 2, "layout": layout, "val_size": 0}
    settings["checkpoint"] = {"every": 1, "keep": 9}
    settings["trainer"] |= {"max_steps": 4, "max_epochs": -1, "accumulate_grad_batches": 2, "accelerator": "cpu"}
    return settings | {"run": "run"}


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


@pytest.mark.parametrize(("name", "layout"), [(name, layout) for name in ("GRPO", "RLOO", "PPO") for layout in ("flat", "padded")])
def test_it_trains_and_goes_on_exactly_from_within_a_rollout(name, layout, fit, metrics, monkeypatch, capsys):
    whole = configuration(name, layout)
    assert fit(whole, "--run", "whole") == 0
    lines = metrics(Path("whole"))
    assert [line["step"] for line in lines] == list(range(1, 5))
    logged = {
        *("train/reward", "train/reward_std", "train/frac_reward_zero_std", "train/rewards/Matches/mean", "train/rewards/Length/std"),
        *("train/completions/mean_length", "train/completions/clipped_ratio", "train/seconds/generate", "train/seconds/train"),
        *(("train/objective/kl", "train/policy/clipfrac_avg", "train/loss/value_avg") if name == "PPO" else ()),
        *(("train/kl", "train/clip_ratio/region_mean", "train/entropy") if name != "PPO" else ()),
    }
    assert logged <= lines[0].keys()
    assert all(None not in line.values() for line in lines)
    told = [json.loads(line) for line in Path("whole/rollouts.jsonl").read_text().splitlines()]
    assert [line["step"] for line in told] == [step for step in (1, 3) for _ in range(4 * OBJECTIVES[name]["answers"])]
    trained = 4 * OBJECTIVES[name]["answers"] / OBJECTIVES[name].get("mini_batches", 1)  # answers a step, not the prompts that were read
    for line in lines:
        assert line["train/samples_per_second"] * line["train/step_seconds"] == pytest.approx(trained)
    first = [line["reward"] for line in told if line["step"] == 1]
    assert lines[0]["train/reward"] == pytest.approx(sum(first) / len(first), abs=1e-5)
    for line in told:
        assert line["reward"] == pytest.approx(2 * line["rewards"]["Matches"] + 0.5 * line["rewards"]["Length"], abs=1e-5)

    train = FineTuner.training_step

    def killed(self, step, number):
        if self.trainer.global_step == 1:
            raise RuntimeError("killed")
        return train(self, step, number)

    with monkeypatch.context() as patched:
        patched.setattr(FineTuner, "training_step", killed)
        with pytest.raises(RuntimeError, match="killed"):
            fit(whole, "--run", "killed")
    assert not Path("killed/adapter").exists()
    assert fit(whole, "--run", "killed") == 0
    assert "resuming killed after step 1" in capsys.readouterr().err
    assert same(adapter("whole"), adapter("killed"))
    assert without_times(metrics(Path("killed"))) == without_times(lines)
    assert Path("killed/rollouts.jsonl").read_text() == Path("whole/rollouts.jsonl").read_text()


def test_the_quick_way_is_the_same_run(fit, metrics, monkeypatch):
    """With ltune's own layers, their decoder among them, allowed on the CPU."""
    for name in ("GRPO", "PPO"):
        settings = configuration(name)
        settings["trainer"]["max_steps"] = 2
        assert fit(settings, "--run", f"plain-{name}") == 0
        with monkeypatch.context() as patched:
            patched.setattr(build, "_require_device", lambda *arguments: None)
            assert fit(settings, "--run", f"quick-{name}", "--model.memory", "speed") == 0
        plain, quick = metrics(Path(f"plain-{name}")), metrics(Path(f"quick-{name}"))
        assert [line["train/loss"] for line in quick] == pytest.approx([line["train/loss"] for line in plain], abs=1e-4)
        assert json.loads(Path(f"quick-{name}/memory.json").read_text())["tokens"] > 0


def test_two_processes_train_as_one(ltune, metrics, tmp_path):
    """The same answers and the same mini-batches, divided otherwise."""
    for name, ranks, batches in (("one", 1, 2), ("two", 2, 1)):
        settings = configuration("PPO", iterations=1)
        strategy = "ddp" if ranks > 1 else "auto"
        settings["trainer"] |= {"devices": ranks, "strategy": strategy, "accumulate_grad_batches": batches, "max_steps": 3}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
        done = ltune("fit", "--config", "config.yaml", "--run", name, ranks=ranks)
        assert done.returncode == 0, done.stderr
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert [line["train/loss"] for line in two] == pytest.approx([line["train/loss"] for line in one], abs=1e-4)
    assert [line["train/reward"] for line in two] == pytest.approx([line["train/reward"] for line in one], abs=1e-5)
    answers = [
        sorted(
            (line["step"], line["row"], line["answer"])
            for line in map(json.loads, (tmp_path / run / "rollouts.jsonl").read_text().splitlines())
        )
        for run in ("one", "two")
    ]
    assert answers[0] == answers[1]


def test_validation_tells_the_mean_reward(fit, metrics):
    settings = configuration("GRPO", answers=2, iterations=1)
    settings["data"] |= {"val_datasets": ["quickstart_prompts"]}
    settings["trainer"] |= {"max_steps": 2, "val_check_interval": 2}
    assert fit(settings) == 0
    last = metrics(Path("run"))[-1]
    assert last["val/loss"] == pytest.approx(-last["val/reward"])
    expected = 2 * last["val/rewards/Matches/mean"] + 0.5 * last["val/rewards/Length/mean"]
    assert last["val/reward"] == pytest.approx(expected, abs=1e-5)
    assert 0 < last["val/completions/mean_length"] <= 6


WRONG = """
def reward(answers, **others):
    {body}
"""


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return [1 / 0 for answer in answers]", "the reward function reward raised ZeroDivisionError: division by zero"),
        ("return [float('nan') for answer in answers]", "the reward function reward gave nan, which is no finite number"),
        ("return [1.0]", "it must return a list of one number an answer; got 1 numbers for 4 answers"),
    ],
)
def test_a_reward_function_that_fails_is_named_with_the_row_and_the_run_goes_on_when_it_is_mended(body, said, fit, metrics, capsys):
    Path("mine.py").write_text(WRONG.format(body=body))
    function = {"class_path": "PythonFunction", "init_args": {"function": "mine.py:reward"}}
    settings = configuration("GRPO", answers=2, iterations=1, rewards=[function])
    settings["data"]["batch_size"] = 1
    settings["trainer"]["max_steps"] = 1
    assert fit(settings) == 3
    message = capsys.readouterr().err
    message = message[message.index("error:") :]
    assert said in message
    assert "row: quickstart_prompts.jsonl:" in message or "row: none alone" in message
    assert len(message.strip().splitlines()) <= 5
    Path("mine.py").write_text(WRONG.format(body="return [float(len(answer)) for answer in answers]"))
    assert fit(settings) == 0
    assert metrics(Path("run"))[-1]["train/rewards/reward/mean"] > 0


def test_equal_rewards_teach_nothing_and_are_no_nan(fit, metrics):
    settings = configuration("GRPO", rewards=[{"class_path": "Matches", "init_args": {"pattern": ".*"}}], iterations=1)
    settings["trainer"]["max_steps"] = 2
    assert fit(settings) == 0
    lines = metrics(Path("run"))
    assert [line["train/frac_reward_zero_std"] for line in lines] == [1.0, 1.0]
    assert [line["train/reward_std"] for line in lines] == [0.0, 0.0]
    assert lines[0]["train/grad_norm"] == 0.0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rewards": []}, "GRPO: rewards is empty"),
        ({"rewards": [{"class_path": "Macthes"}]}, '"Macthes" is none of ExactMatch, Length, Matches, ModelReward, PythonFunction'),
        ({"rewards": [{"class_path": "Length", "init_args": {"taget": 3}}]}, 'did you mean "target"?'),
        ({"sampling": {"temperature": 0.0}}, "sampling.temperature is 0"),
        ({"answers": 1}, "answers is 2 or more, got 1"),
        ({"iterations": 0}, "iterations is 1 or more, got 0"),
        ({"rewards": [{"class_path": "Matches", "init_args": {"pattern": "("}}]}, "pattern"),
        ({"rewards": [{"class_path": "PythonFunction", "init_args": {"function": "nowhere.py:reward"}}]}, "there is no file nowhere.py"),
    ],
)
def test_wrong_settings_are_refused_before_anything_loads(changes, said, fit, capsys):
    assert fit(configuration("GRPO", **changes)) == 2
    message = capsys.readouterr().err
    assert said in message
    assert len(message.strip().splitlines()) <= 5


def test_a_prompt_longer_than_the_limit_is_shortened_and_counted(fit):
    settings = configuration("GRPO", iterations=1)
    settings["data"] |= {"max_length": 16}
    settings["trainer"]["max_steps"] = 1
    assert fit(settings) == 0
    assert json.loads(Path("run/data_report.json").read_text())["total"]["truncated"] > 0


def test_a_reward_model_of_an_earlier_run_scores(fit, metrics, tmp_path):
    asked = [{"prompt": f"Say {n}.", "chosen": f"{n}.", "rejected": "The plural of cat is cats."} for n in range(4)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    settings = configuration("PPO", iterations=1, mini_batches=1)
    ppo, reward = settings["model"]["objective"], {"class_path": "Reward"}
    settings["model"]["objective"], settings["data"]["datasets"] = reward, ["pairs.jsonl"]
    settings["trainer"]["max_steps"] = 2
    assert fit(settings, "--run", "reward") == 0
    ppo["init_args"]["rewards"] = [{"class_path": "ModelReward", "init_args": {"folder": "reward/adapter", "at_once": 3}}]
    settings["model"]["objective"], settings["data"]["datasets"] = ppo, ["quickstart_prompts"]
    assert fit(settings, "--run", "ppo") == 0
    line = metrics(Path("ppo"))[0]
    assert line["train/rewards/ModelReward/std"] > 0
    assert line["train/reward"] == pytest.approx(line["train/rewards/ModelReward/mean"], abs=1e-6)
    scores = {
        (told["row"], told["answer"]): told["reward"] for told in map(json.loads, Path("ppo/rollouts.jsonl").read_text().splitlines())
    }
    assert len(set(scores.values())) > 1
