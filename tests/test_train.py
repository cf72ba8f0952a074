"""`ltune fit` as a user has it: real processes, a tiny model in 4 bits, real files."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ltune.checkpoints.publish import _render, read_manifest

CONFIGURATION = {
    "run": "run",
    "model": {
        "model": "tiny",
        "adapter": {"class_path": "LoRA", "init_args": {"rank": 4, "alpha": 8, "dropout": 0.1}},
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}},
    },
    "data": {"datasets": ["rows.jsonl"], "batch_size": 2, "max_length": 128},
    "checkpoint": {"every": 2},
    "trainer": {
        "max_epochs": 2,
        "accumulate_grad_batches": 3,
        "accelerator": "cpu",
        "precision": "32-true",
        "log_every_n_steps": 1,
        "logger": "TensorBoard",
    },
}
STEPS = 8  # 24 rows, 6 a window, 2 epochs


@pytest.fixture
def config(rows, tmp_path) -> str:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIGURATION))
    return "config.yaml"


VALIDATED = ["--data.val_size", 4, "--data.batch_size", 1, "--trainer.accumulate_grad_batches", 5]


@pytest.fixture(scope="module")
def validated(ltune_in, write_rows, tmp_path_factory) -> Path:
    """A whole run with validation."""
    folder = tmp_path_factory.mktemp("validated")
    write_rows(folder)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIGURATION))
    done = ltune_in(folder, "fit", "--config", "config.yaml", *VALIDATED)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def adapter_hash(run: Path) -> str:
    return hashlib.sha256((run / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def test_a_run_leaves_what_it_should_and_the_same_command_says_it_is_finished(ltune, config, tmp_path, metrics):
    done = ltune("fit", "--config", config)
    run = tmp_path / "run"
    assert done.returncode == 0, done.stderr
    assert "adapter: run/adapter" in done.stdout
    assert "step 8/8" in done.stderr
    names = {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "chat_template.jinja", "README.md", "manifest.json"}
    assert names <= {path.name for path in (run / "adapter").iterdir()}
    assert {path.name for path in run.iterdir()} == {
        "adapter", "checkpoints", "config.yaml", "data_report.json", "loss.png", "metrics.jsonl", "run.json", "tensorboard",
    }  # fmt: skip
    lines = metrics(run)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    logged = {
        "train/loss",
        "train/lr",
        "train/grad_norm",
        "train/tokens_per_second",
        "train/samples_per_second",
        "train/step_seconds",
        "train/epoch",
        "train/peak_memory_gib",
    }
    assert logged <= lines[0].keys()
    assert lines[0]["train/lr"] == 0.0
    assert json.loads((run / "data_report.json").read_text())["total"]["rows"] == 24
    scalars = EventAccumulator(str(run / "tensorboard")).Reload()
    assert logged <= set(scalars.Tags()["scalars"])
    assert [event.step for event in scalars.Scalars("train/loss")] == list(range(1, STEPS + 1))
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    again = ltune("fit", "--config", config)
    assert again.returncode == 0
    assert "run is finished: 8 steps" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before
    refused = ltune("fit", "--config", config, "--data.batch_size", 3, "--seed_everything", 1)
    assert refused.returncode == 2
    assert "data.batch_size: 2 -> 3" in refused.stderr
    assert "seed_everything: 42 -> 1" in refused.stderr
    assert len(refused.stderr.splitlines()) <= 5
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"instruction": "One more", "output": "row"}\n')
    changed = ltune("fit", "--config", config)
    assert changed.returncode == 2
    assert "rows.jsonl" in changed.stderr


def start(tmp_path: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "ltune", "fit", "--config", "config.yaml", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    )


def wait_for(run: Path, step: int, process: subprocess.Popen) -> None:
    while process.poll() is None and not (run / "checkpoints" / f"step-{step:08d}").exists():
        time.sleep(0.002)


def test_killed_terminated_and_damaged_runs_end_in_the_same_bits(ltune, config, tmp_path, metrics):
    """Processes begun anew, as a user has them. The long version is scripts/kill_resume.py."""
    whole = ltune("fit", "--config", config, "--run", "whole")
    assert whole.returncode == 0, whole.stderr
    expected = adapter_hash(tmp_path / "whole")

    run = tmp_path / "killed"
    process = start(tmp_path, "--run", "killed", "--checkpoint.every", "1", "--data.workers", "2")
    wait_for(run, 3, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    newest = max((run / "checkpoints").glob("step-*"))
    assert len(list((run / "checkpoints").glob("step-*"))) >= 2
    weights = newest / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    resumed = ltune("fit", "--config", config, "--run", "killed", fresh=True)
    assert resumed.returncode == 0, resumed.stderr
    assert f"{newest.name}/weights.safetensors" in resumed.stderr
    assert "resuming" in resumed.stderr
    assert adapter_hash(run) == expected
    assert [line["step"] for line in metrics(run)] == list(range(1, STEPS + 1))
    assert not list(run.rglob(".*"))

    assert "another environment" not in resumed.stderr

    run = tmp_path / "terminated"
    process = start(tmp_path, "--run", "terminated", "--checkpoint.every", "1")
    wait_for(run, 4, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "the checkpoint is written" in errors
    newest = max((run / "checkpoints").glob("step-*"))
    manifest = read_manifest(newest)
    (newest / "manifest.json").write_text(_render(manifest | {"versions": manifest["versions"] | {"torch": "2.0.0"}}))
    again = ltune("fit", "--config", config, "--run", "terminated")
    assert again.returncode == 0, again.stderr
    assert "another environment than at that step, so the run may end in other last bits: torch 2.0.0, now" in again.stderr
    assert adapter_hash(run) == expected


WITH_STOP_AFTER = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}


def stop_after(step: int, signum: int) -> list[str]:
    """Options that send the signal while this step is under way."""
    return [
        "--trainer.callbacks+=stop_after.StopAfter",
        f"--trainer.callbacks.step={step}",
        f"--trainer.callbacks.signum={int(signum)}",
    ]


@pytest.mark.parametrize(
    ("stop_at", "signum", "every"),
    [(3, signal.SIGINT, 1), (4, signal.SIGINT, 100), (5, signal.SIGINT, 1), (5, signal.SIGKILL, 100)],
    ids=["mid-epoch", "last step of an epoch", "first step of the next", "killed, back to the end of the epoch"],
)
def test_a_stop_at_any_place_with_validation_goes_on_exactly(stop_at, signum, every, validated, ltune, config, tmp_path, metrics):
    options = [*VALIDATED, "--checkpoint.every", every]
    stopped = ltune("fit", "--config", config, "--run", "stopped", *options, *stop_after(stop_at, signum), env=WITH_STOP_AFTER)
    assert stopped.returncode == (130 if signum == signal.SIGINT else -9), stopped.stderr
    again = ltune("fit", "--config", config, "--run", "stopped", *options)
    assert again.returncode == 0, again.stderr
    assert adapter_hash(tmp_path / "stopped") == adapter_hash(validated)
    assert [line["step"] for line in metrics(validated) if "val/loss" in line] == [4, 8]
    assert timeless(metrics(tmp_path / "stopped")) == timeless(metrics(validated))


def test_micro_batches_of_so_many_tokens_train_and_go_on_exactly(ltune, config, tmp_path, metrics):
    options = ["--data.tokens_per_batch", 100, "--trainer.accumulate_grad_batches", 2, "--checkpoint.every", 1]
    whole = ltune("fit", "--config", config, "--run", "whole", *options)
    assert whole.returncode == 0, whole.stderr
    stopped = ltune("fit", "--config", config, "--run", "stopped", *options, *stop_after(3, signal.SIGINT), env=WITH_STOP_AFTER)
    assert stopped.returncode == 130, stopped.stderr
    assert not (tmp_path / "stopped" / "adapter").exists()
    again = ltune("fit", "--config", config, "--run", "stopped", *options)
    assert again.returncode == 0, again.stderr
    assert "resuming stopped after step 3" in again.stderr
    assert adapter_hash(tmp_path / "stopped") == adapter_hash(tmp_path / "whole")
    tokens = json.loads((tmp_path / "whole" / "data_report.json").read_text())["total"]["tokens"]
    assert 100 * 7 < tokens <= 100 * 8  # so that there are 8 micro-batches at least, 2 a step
    assert [line["step"] for line in metrics(tmp_path / "whole")] == list(range(1, 2 * 4 + 1))
    assert timeless(metrics(tmp_path / "stopped")) == timeless(metrics(tmp_path / "whole"))


def timeless(lines: list[dict]) -> list[dict]:
    """Metrics without those that differ from run to run."""
    return [{name: value for name, value in line.items() if "second" not in name and "memory" not in name} for line in lines]
