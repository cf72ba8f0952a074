"""The reference runs come out the same, through `ltune import` and `ltune fit`: SFT however its windows are cut up, DPO and KTO."""

import json

import pytest
import yaml
from safetensors.torch import load_file


@pytest.fixture
def golden(shared):
    """Where they are."""
    return shared / "golden" / "runs"


@pytest.fixture
def fit(golden, ltune, tmp_path, metrics):
    """Import a reference run's settings, as LLaMA-Factory has them, and train: (its steps, ours)."""

    def run(stage: str, *options: str) -> tuple[list[dict], list[dict]]:
        theirs = json.loads((golden / f"{stage}.json").read_text())
        settings = theirs["settings"] | {
            "do_train": True,
            "model_name_or_path": str(golden / "model"),
            "adapter_name_or_path": str(golden / "adapter"),
            "dataset_dir": str(golden.parents[1] / "data"),
            "output_dir": "run",
            "logging_steps": 1,
            "bf16": False,
            "fp16": False,
        }
        (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(settings))
        for arguments in (["import", "theirs.yaml", "--output", "ours.yaml"], ["fit", "--config", "ours.yaml", *options]):
            done = ltune(*arguments)
            assert done.returncode == 0, done.stderr
        return theirs["steps"], [line for line in metrics(tmp_path / "run") if "train/loss" in line]

    return run


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--data.layout", "padded"],
        ["--data.batch_size", "8", "--trainer.accumulate_grad_batches", "1"],
        ["--data.batch_size", "1", "--trainer.accumulate_grad_batches", "8"],
    ],
    ids=["2x4 flat", "2x4 padded", "8x1 flat", "1x8 flat"],
)
def test_supervised_fine_tuning(options, fit, golden, tmp_path):
    assert_same_steps(*fit("sft", *options), close=1e-5)
    mine, theirs = tmp_path / "run" / "adapter" / "adapter_model.safetensors", golden / "sft_final_adapter.safetensors"
    assert relative_difference(mine, theirs) < 1e-5


@pytest.mark.parametrize("stage", ["dpo", "kto"])
def test_preferences(stage, fit):
    assert_same_steps(*fit(stage), close=1e-4)


def assert_same_steps(theirs: list[dict], mine: list[dict], close: float) -> None:
    """Each step's loss, and its learning rate."""
    assert [line["step"] for line in mine] == [step["current_steps"] for step in theirs]
    assert max(abs(line["train/loss"] - step["loss"]) for line, step in zip(mine, theirs, strict=True)) < close
    assert max(abs(line["train/lr"] - step["lr"]) for line, step in zip(mine, theirs, strict=True)) < 1e-9


def relative_difference(mine, theirs) -> float:
    """Norm of the difference over the norm, all weights together."""
    mine, theirs = load_file(mine), load_file(theirs)
    assert mine.keys() == theirs.keys()
    difference = sum(float((mine[name].double() - theirs[name].double()).square().sum()) for name in theirs)
    return (difference / sum(float(theirs[name].double().square().sum()) for name in theirs)) ** 0.5
