"""The reference run of 222 steps comes out the same, through `ltune import` and `ltune fit`, however its windows are cut up."""

import json

import pytest
import yaml
from safetensors.torch import load_file


@pytest.fixture
def imported(shared, ltune, tmp_path):
    """The reference run's settings as LLaMA-Factory has them, imported."""
    runs = shared / "golden" / "runs"
    settings = json.loads((runs / "sft.json").read_text())["settings"] | {
        "do_train": True,
        "model_name_or_path": str(runs / "model"),
        "adapter_name_or_path": str(runs / "adapter"),
        "dataset_dir": str(shared / "data"),
        "output_dir": "run",
        "logging_steps": 1,
        "bf16": False,
        "fp16": False,
    }
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(settings))
    done = ltune("import", "theirs.yaml", "--output", "ours.yaml")
    assert done.returncode == 0, done.stderr
    return "ours.yaml"


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
def test_the_reference_run(options, imported, shared, ltune, tmp_path, metrics):
    done = ltune("fit", "--config", imported, *options)
    assert done.returncode == 0, done.stderr
    golden = json.loads((shared / "golden" / "runs" / "sft.json").read_text())["steps"]
    mine = [line for line in metrics(tmp_path / "run") if "train/loss" in line]
    assert [line["step"] for line in mine] == [step["current_steps"] for step in golden]
    assert max(abs(line["train/loss"] - step["loss"]) for line, step in zip(mine, golden, strict=True)) < 1e-5
    assert max(abs(line["train/lr"] - step["lr"]) for line, step in zip(mine, golden, strict=True)) < 1e-9
    assert (
        relative_difference(
            tmp_path / "run" / "adapter" / "adapter_model.safetensors", shared / "golden" / "runs" / "sft_final_adapter.safetensors"
        )
        < 1e-5
    )


def relative_difference(mine, theirs) -> float:
    """Norm of the difference over the norm, all weights together."""
    mine, theirs = load_file(mine), load_file(theirs)
    assert mine.keys() == theirs.keys()
    difference = sum(float((mine[name].double() - theirs[name].double()).square().sum()) for name in theirs)
    return (difference / sum(float(theirs[name].double().square().sum()) for name in theirs)) ** 0.5
