"""Every method of preferences runs from its own configuration: with 4-bit weights, flat and padded, resumed exactly, by two processes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ltune.cli import main
from ltune.models.fast import build

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
METHODS = ["reward", "dpo", "simpo", "orpo", "cpo", "kto", "bco"]
SHORT = [
    *("--data.max_rows", "24", "--data.val_size", "0", "--model.schedule", "Constant"),
    *("--trainer.max_epochs", "-1", "--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--trainer.log_every_n_steps", "1"),
    *("--trainer.enable_progress_bar", "false"),
]


@pytest.fixture
def fit(tmp_path, monkeypatch, metrics):
    """Run `ltune fit` with a shipped configuration in this process; what it logged."""
    monkeypatch.chdir(tmp_path)

    def run(method: str, name: str, steps: int, *options: str) -> list[dict]:
        chosen = ["--config", str(CONFIGS / f"{method}.yaml"), "--run", name, *SHORT, "--trainer.max_steps", str(steps)]
        assert main(["fit", *chosen, *options]) == 0
        return metrics(tmp_path / name)

    return run


def weights(run: str) -> dict:
    """All that was trained."""
    return {file.name: load_file(file) for file in sorted(Path(run).glob("adapter/*.safetensors"))}


@pytest.mark.parametrize("method", METHODS)
def test_flat_and_padded_are_the_same_two_steps_and_a_resumed_run_is_the_same_bits(method, fit):
    whole = fit(method, "whole", 3, "--checkpoint.every", "1")
    padded = fit(method, "padded", 2, "--data.layout", "padded")
    assert [line["train/loss"] for line in padded] == pytest.approx([line["train/loss"] for line in whole[:2]], abs=1e-4)
    fit(method, "again", 2, "--checkpoint.every", "1")
    resumed = fit(method, "again", 3, "--checkpoint.every", "1", "--resume.allow=[trainer.max_steps]")
    assert [line["train/loss"] for line in resumed] == [line["train/loss"] for line in whole]
    mine, theirs = weights("again"), weights("whole")
    assert mine.keys() == theirs.keys()
    assert all((mine[file][name] == theirs[file][name]).all() for file in mine for name in mine[file])


@pytest.mark.parametrize("method", ["dpo", "kto", "reward"])
def test_the_quick_way_is_the_same_run(method, fit, monkeypatch):
    monkeypatch.setattr(build, "_require_device", lambda *arguments: None)
    quick = fit(method, "quick", 2, "--model.memory", "speed", "--data.val_size", "6")
    assert Path("quick/memory.json").exists()
    plain = fit(method, "plain", 2, "--model.fast", "false", "--data.val_size", "6")
    assert quick[-1].keys() == plain[-1].keys()
    for mine, theirs in zip(quick, plain, strict=True):
        same = [name for name in theirs if name.startswith(("train/loss", "train/rewards", "train/logps", "val/"))]
        assert same
        assert [mine[name] for name in same] == pytest.approx([theirs[name] for name in same], abs=1e-4)


def test_two_processes_train_as_one(ltune, metrics, tmp_path):
    """With a rank that has no row in the last step."""
    common = ["--config", CONFIGS / "dpo.yaml", *SHORT, "--trainer.max_steps", 3, "--data.max_rows", 11, "--data.val_size", 1]
    one = ltune("fit", *common, "--run", "one", "--trainer.devices", 1)
    spread = ["--trainer.devices", 2, "--trainer.strategy", "ddp", "--trainer.accumulate_grad_batches", 1]
    two = ltune("fit", *common, "--run", "two", *spread, ranks=2)
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    mine, theirs = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert len(mine) == len(theirs)
    for a, b in zip(mine, theirs, strict=True):
        same = [name for name in a if name.startswith(("train/loss", "train/rewards", "train/logps", "val/"))]
        assert [a[name] for name in same] == pytest.approx([b[name] for name in same], abs=1e-4)


def test_validation_has_the_metrics_too(fit):
    lines = fit("dpo", "run", 4, "--data.val_size", "8", "--trainer.val_check_interval", "2")
    (told,) = [line for line in lines if "val/rewards/accuracies" in line][-1:]
    assert 0 <= told["val/rewards/accuracies"] <= 1
    assert "val/perplexity" not in told
    assert told["val/rewards/margins"] == pytest.approx(told["val/rewards/chosen"] - told["val/rewards/rejected"], abs=1e-5)


REFERENCES = {
    "another model, cached": {"class_path": "OtherModel", "init_args": {"model": "tiny", "quantize": "NF4", "cache": True}},
    "its own, cached": {"class_path": "AdapterOff", "init_args": {"cache": True}},
}


@pytest.mark.parametrize("name", REFERENCES)
def test_another_reference_gives_the_same_steps_and_goes_on_exactly(name, fit):
    """The model without its adapter is the embedded one in 4 bits, so that all of these are the same reference."""
    rows, reference = ["--data.max_rows", "12"], f"--model.objective.reference={json.dumps(REFERENCES[name])}"  # two steps an epoch
    plain = fit("dpo", "plain", 5, *rows)
    whole = fit("dpo", "whole", 5, *rows, reference)  # so that the cache serves
    assert [line["train/loss"] for line in whole] == pytest.approx([line["train/loss"] for line in plain], abs=1e-4)
    fit("dpo", "again", 3, *rows, reference)  # within the second
    resumed = fit("dpo", "again", 5, *rows, reference, "--resume.allow=[trainer.max_steps]")
    assert [line["train/loss"] for line in resumed] == [line["train/loss"] for line in whole]


def test_a_whole_model_with_another_one_as_its_reference(fit):
    reference = json.dumps({"class_path": "OtherModel", "init_args": {"model": "tiny"}})
    options = ["--model.adapter", "Full", "--model.quantize", "null", f"--model.objective.reference={reference}"]
    lines = fit("dpo", "run", 3, *options)
    assert [line["train/loss"] for line in lines[:2]] == pytest.approx([0.6931, 0.6931], abs=1e-4)  # the first step warms up from 0
    assert lines[2]["train/loss"] != lines[1]["train/loss"]


def test_a_head_is_trained_in_float32_where_all_else_is_bf16(fit):
    fit("reward", "run", 2, "--trainer.precision", "bf16-true")
    assert {tensor.dtype for tensor in weights("run")["value_head.safetensors"].values()} == {torch.float32}


# -- rows that teach nothing ------------------------------------------------------------------------------------------------------------

QUESTION = "What is the house like? " * 60


def write(name: str, *rows: dict) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"--data.datasets=[{name}]"


@pytest.mark.parametrize("method", ["reward", "dpo", "simpo", "orpo", "cpo"])
def test_equal_and_empty_answers_and_long_questions_train_on_finitely(method, fit):
    rows = [
        {"instruction": "hi", "chosen": "same", "rejected": "same"},
        {"instruction": "hi", "chosen": "", "rejected": "x"},
        {"instruction": QUESTION, "chosen": "good", "rejected": "bad"},
        {"instruction": "hi", "chosen": "a", "rejected": ""},
    ]
    lines = fit(method, "run", 2, write("odd.jsonl", *rows), "--data.max_length", "48")
    assert all(abs(line["train/loss"]) < 100 and abs(line["train/grad_norm"]) < 1e4 for line in lines)
    report = json.loads(Path("run/data_report.json").read_text())["total"]
    assert (report["rows"], report["equal_answers"], report["empty_answers"], report["truncated"]) == (4, 1, 2, 1)


@pytest.mark.parametrize("method", ["kto", "bco"])
def test_rated_answers_of_one_kind_empty_and_long_ones_train_on_finitely(method, fit):
    rows = [
        {"instruction": "hi", "output": "", "kto_tag": True},
        {"instruction": QUESTION, "output": "good", "kto_tag": True},
        {"instruction": "hi", "output": QUESTION, "kto_tag": True},
        {"instruction": "hi", "output": "x", "kto_tag": True},
    ]
    lines = fit(method, "run", 2, write("odd.jsonl", *rows), "--data.max_length", "48")
    assert all(abs(line["train/loss"]) < 100 for line in lines)
    assert "train/rewards/rejected" not in lines[0]
    report = json.loads(Path("run/data_report.json").read_text())["total"]
    assert (report["rows"], report["dropped"]["the answer does not fit in 48 tokens"]["rows"]) == (3, 1)


def test_rows_of_another_kind_are_refused_with_what_the_objective_trains_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for method, rows, said in (
        ("dpo", "quickstart", "a pair needs the column chosen and rejected"),
        ("kto", "quickstart_pairs", "a rated answer needs the column label"),
    ):
        options = [*SHORT, "--trainer.max_steps", "1", f"--data.datasets=[{rows}]"]
        assert main(["fit", "--config", str(CONFIGS / f"{method}.yaml"), "--run", "run", *options]) == 2
        told = capsys.readouterr().err
        assert said in told
        assert f"model.objective: {method.upper()} trains on" in told
        assert len(told[told.index("error:") :].splitlines()) <= 5
