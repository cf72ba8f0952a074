"""Two processes on the CPU (gloo) do the same as one with the same rows a step.

4-bit weights, rows of unequal length, and a rank without work in the last step of an epoch.
"""

import json

from safetensors.torch import load_file

OPTIONS = [
    "--model.optimizer.lr", 1e-3, "--data.datasets=[rows.jsonl]", "--data.batch_size", 2, "--data.max_rows", 21, "--data.val_size", 0,
    "--trainer.accelerator", "cpu", "--trainer.max_epochs", 2, "--trainer.log_every_n_steps", 1, "--trainer.gradient_clip_val", 1.0,
]  # fmt: skip


def test_two_processes_train_as_one(ltune, rows, metrics, tmp_path):
    one = ltune("fit", "--run", "one", *OPTIONS, "--trainer.devices", 1, "--trainer.accumulate_grad_batches", 2)
    two = ltune("fit", "--run", "two", *OPTIONS, "--trainer.devices", 2, "--trainer.strategy", "ddp", fresh=True)
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    mine, theirs = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert [line["step"] for line in mine] == [line["step"] for line in theirs] == list(range(1, 13))
    assert max(abs(a["train/loss"] - b["train/loss"]) for a, b in zip(mine, theirs, strict=True)) < 1e-5
    first, second = (load_file(tmp_path / run / "adapter" / "adapter_model.safetensors") for run in ("one", "two"))
    difference = sum(float((first[name] - second[name]).square().sum()) for name in first)
    assert (difference / sum(float(tensor.square().sum()) for tensor in first.values())) ** 0.5 < 1e-5
    refused = ltune("fit", "--run", "two", *OPTIONS, "--trainer.devices", 1, "--trainer.strategy", "ddp")
    assert refused.returncode == 2
    assert 'trainer.devices: "2" -> "1"' in refused.stderr
    assert json.loads((tmp_path / "two" / "run.json").read_text())["state"] == "finished"


def test_one_process_under_ddp_trains_as_one_alone(ltune, rows, metrics, tmp_path):
    short = [*OPTIONS, "--trainer.devices", 1, "--trainer.max_steps", 2]
    runs = {"alone": ltune("fit", "--run", "alone", *short), "ddp": ltune("fit", "--run", "ddp", *short, "--trainer.strategy", "ddp")}
    assert [run.returncode for run in runs.values()] == [0, 0], [run.stderr for run in runs.values()]
    alone, ddp = ([line["train/loss"] for line in metrics(tmp_path / run)] for run in runs)
    assert alone == ddp
