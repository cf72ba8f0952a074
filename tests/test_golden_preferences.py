"""The reference runs of DPO and KTO come out the same, through `ltune import` and `ltune fit`."""

import json

import pytest
import yaml


@pytest.mark.parametrize("stage", ["dpo", "kto"])
def test_every_steps_loss_is_the_references(stage, shared, ltune, tmp_path, metrics):
    runs = shared / "golden" / "runs"
    golden = json.loads((runs / f"{stage}.json").read_text())
    settings = golden["settings"] | {
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
    done = ltune("fit", "--config", "ours.yaml")
    assert done.returncode == 0, done.stderr
    mine = [line for line in metrics(tmp_path / "run") if "train/loss" in line]
    assert [line["step"] for line in mine] == [step["current_steps"] for step in golden["steps"]]
    assert max(abs(line["train/loss"] - step["loss"]) for line, step in zip(mine, golden["steps"], strict=True)) < 1e-4
    assert max(abs(line["train/lr"] - step["lr"]) for line, step in zip(mine, golden["steps"], strict=True)) < 1e-9
