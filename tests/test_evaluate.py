"""validate, test and predict: from a run, from its adapter, from one of its checkpoints; and what has nothing to work on is refused."""

import json

import pytest


def test_the_other_commands_take_a_run_an_adapter_or_a_checkpoint(ltune, rows, metrics, tmp_path):
    options = ["--data.datasets=[rows.jsonl]", "--run", "run", "--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", 1]
    fitted = ltune("fit", *options, "--data.val_size", 6, "--trainer.max_epochs", 1, "--model.optimizer.lr", 1e-3, "--data.batch_size", 6)
    assert fitted.returncode == 0, fitted.stderr
    last = [line["val/loss"] for line in metrics(tmp_path / "run") if "val/loss" in line][-1]
    validated = ltune("validate", *options, "--data.val_size", 6, "--ckpt_path", "run", "--data.batch_size", 4)
    assert validated.returncode == 0, validated.stderr
    assert printed(validated.stdout, "val/loss") == pytest.approx(last, abs=1e-5)

    checkpoint = max((tmp_path / "run" / "checkpoints").glob("step-*"))
    tested = ltune("test", *options, "--data.test_datasets=[rows.jsonl]", "--ckpt_path", checkpoint)
    assert tested.returncode == 0, tested.stderr
    again = ltune("test", *options, "--data.test_datasets=[rows.jsonl]", "--ckpt_path", "run/adapter", "--data.layout", "padded")
    assert printed(again.stdout, "test/loss") == pytest.approx(printed(tested.stdout, "test/loss"), abs=1e-5)

    predicted = ltune("predict", *options, "--ckpt_path", "run", "--model.sampling.max_new_tokens", 5, "--data.max_rows", 7)
    assert predicted.returncode == 0, predicted.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines] == [{"prompt", "predict", "label"}] * 7
    assert lines[0]["label"] == "word 0."

    nothing = ltune("validate", *options, "--ckpt_path", "run")
    assert nothing.returncode == 2
    assert "nothing to validate on" in nothing.stderr


def printed(table: str, name: str) -> float:
    """A value of the table that Lightning prints."""
    return float(next(line for line in table.splitlines() if name in line).split("│")[2])
