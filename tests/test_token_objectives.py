"""Methods whose loss is one per token, as a user has them: 4-bit weights, both layouts the same, stopped and gone on with exactly."""

import json
import os
import signal
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from ltune import cli
from ltune.models.fast import build

WEIGHTS = ["--data.train_on", "all", "--data.weights", "{user: 0.1, template: 0}"]
METHODS = {
    "dft, noise": ["--model.objective.dft", "true", "--model.objective.neftune_alpha", "5", "--data.train_on", "last"],
    "smoothing, weights": ["--model.objective.label_smoothing", "0.1", *WEIGHTS],
    "eaft": ["--model.objective", "EAFT", "--model.objective.alpha", "0.5"],
    "distill": ["--model.objective", "Distill", "--model.objective.teacher", "tiny", "--model.objective.sft_weight", "0.5", *WEIGHTS],
    "itself": ["--model.objective", "Distill", "--model.objective.divergence", "JSD", "--model.objective.sft_weight", "1"],
}
CONFIGURATION = {
    "model": {
        "model": "tiny",
        "quantize": "NF4",
        "adapter": {"class_path": "LoRA", "init_args": {"rank": 4, "alpha": 8}},
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-2}},
        "schedule": "Constant",
    },
    "data": {"datasets": ["rows.jsonl"], "batch_size": 2, "max_length": 128, "val_size": 3},
    "checkpoint": {"every": 1},
    "trainer": {
        "max_steps": 3, "accumulate_grad_batches": 2, "accelerator": "cpu", "precision": "32-true", "log_every_n_steps": 1,
        "enable_progress_bar": False, "gradient_clip_val": 1.0, "val_check_interval": 3, "limit_train_batches": 3,
    },
}  # fmt: skip
TIMES = ("second", "memory")  # in the names of what differs from run to run


@pytest.fixture
def fit(rows, tmp_path, monkeypatch):
    """Run `ltune fit` in this process; what was logged, without times."""
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(yaml.safe_dump(CONFIGURATION))

    def run(name: str, *options: str, code: int = 0) -> list[dict]:
        assert cli.main(["fit", "--config", "config.yaml", "--run", name, *options]) == code
        lines = [json.loads(line) for line in (Path(name) / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if not any(word in key for word in TIMES)} for line in lines]

    return run


def adapter(run):
    return load_file(Path(run) / "adapter" / "adapter_model.safetensors")


def assert_same_metrics(found, expected, close):
    assert [line.keys() for line in found] == [line.keys() for line in expected]
    for line, other in zip(found, expected, strict=True):
        assert line == pytest.approx(other, rel=close, abs=close), (line, other)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_and_goes_on_exactly(method, fit, monkeypatch):
    options = METHODS[method]
    whole = fit("whole", *options)
    assert [line["step"] for line in whole if "train/loss" in line] == [1, 2, 3]
    assert all(line["train/grad_norm"] > 0 for line in whole[:3] if line["step"] > 1)  # at first the model is what it was
    assert whole[-1]["val/loss"] >= 0
    stop = ["--trainer.callbacks+=stop_after.StopAfter", "--trainer.callbacks.step=2", f"--trainer.callbacks.signum={int(signal.SIGINT)}"]
    fit("stopped", *options, *stop, code=130)
    assert fit("stopped", *options) == whole
    first, second = adapter("whole"), adapter("stopped")
    assert all(first[name].equal(second[name]) for name in first)
    assert_same_metrics(fit("padded", *options, "--data.layout", "padded"), whole, close=2e-5)


@pytest.mark.parametrize("method", ["smoothing, weights", "distill"])
def test_the_quick_way_is_the_same_run(method, fit, monkeypatch):
    plain = fit("plain", *METHODS[method])
    monkeypatch.setattr(build, "_require_device", lambda *arguments: None)  # on the CPU, where it is otherwise left out
    assert_same_metrics(fit("quick", *METHODS[method], "--model.memory", "speed"), plain, close=2e-5)


def test_weights_of_one_are_none_and_their_scale_is_nothing(fit):
    plain = fit("plain", "--data.train_on", "all")
    twice = fit("twice", "--data.train_on", "all", "--data.weights", "{system: 2, user: 2, tool: 2, assistant: 2, template: 2}")
    assert_same_metrics(twice, plain, close=1e-6)
    whole = fit("4 x 1", *WEIGHTS, "--data.batch_size", "4", "--trainer.accumulate_grad_batches", "1")
    parts = fit("1 x 4", *WEIGHTS, "--data.batch_size", "1", "--trainer.accumulate_grad_batches", "4")
    assert_same_metrics(parts, whole, close=2e-5)


def test_two_processes_train_as_one(ltune, fit, metrics, tmp_path):
    options = [
        "--model.objective", "Distill", "--model.objective.teacher", "tiny", "--model.objective.sft_weight", "0.5",
        "--model.objective.dft", "true", *WEIGHTS, "--data.max_rows", "9", "--data.val_size", "0", "--trainer.limit_train_batches", "1.0",
    ]  # fmt: skip
    one = fit("one", *options, "--trainer.devices", "1")
    several = ["--trainer.devices", 2, "--trainer.strategy", "ddp", "--trainer.accumulate_grad_batches", 1]
    two = ltune("fit", "--config", "config.yaml", *options, "--run", "two", *several, ranks=2)
    assert two.returncode == 0, two.stderr
    assert len(one) == 3  # the third has one row, so that a rank has none
    names = ["train/loss", "train/divergence", "train/cross_entropy", "train/teacher/cross_entropy", "train/grad_norm"]
    for mine, theirs in zip(one, metrics(tmp_path / "two"), strict=True):
        assert [mine[name] for name in names] == pytest.approx([theirs[name] for name in names], abs=2e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model.objective.dft", "true", "--model.objective.label_smoothing", "0.1"], "dft and label_smoothing"),
        (["--data.weights", "{usr: 1}", "--data.train_on", "all"], "no role usr"),
        (["--data.weights", "{user: 0.5}"], "data.train_on: all"),
        (["--model.objective", "Pretrain", "--data.weights", "{user: 0}", "--data.datasets=[text.jsonl]"], "no roles to weigh"),
        (["--model.objective", "Distill", "--model.adapter", "Full", "--model.quantize", "null"], "Name a teacher"),
        (["--model.objective", "Distill", "--model.objective.teacher", "no/such"], "no/such"),
    ],
)
def test_what_cannot_be_is_told(options, said, rows, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(yaml.safe_dump(CONFIGURATION))
    Path("text.jsonl").write_text('{"text": "Nobody says this."}\n')
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    assert cli.main(["fit", "--config", "config.yaml", "--run", "run", *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error[error.index("error:") :].splitlines()) <= 5
