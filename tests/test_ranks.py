"""What two ranks have to agree on, the quick way on the CPU: how memory is used, and whose rows are bad."""

import re

import pytest
from safetensors.torch import load_file

# Imported by `ltune fit` with its callbacks: the quick way on the CPU, with so much memory free on each rank, and for so many tokens at
# once; told to stop after a step, if at all
PROGRAM = """
import os, signal
import torch
from lightning.pytorch import Callback
from ltune.models.fast import build
from ltune.models.fast.model import FastModel

rank = int(os.environ.get("LOCAL_RANK", 0))
build._require_device = lambda *arguments: None
torch.cuda.mem_get_info = lambda: (int(os.environ["FREE"].split()[rank]), 2**40)
room = int(os.environ.get("ROOM", "999 999").split()[rank])
compute = FastModel.token_losses

def losses(self, input_ids, *rest):
    if len(input_ids) > room:
        raise torch.OutOfMemoryError("out of memory")
    return compute(self, input_ids, *rest) * (float("nan") if os.environ.get("BAD") == str(rank) else 1)

FastModel.token_losses = losses

class Watch(Callback):
    def on_train_batch_end(self, trainer, module, *rest):
        with open(f"{trainer.default_root_dir}-{trainer.global_rank}.txt", "w") as file:
            file.write(str(module.memory.setting))
        if trainer.global_rank == 0 and trainer.global_step == int(os.environ.get("STOP", 0)):
            os.kill(os.getpid(), signal.SIGTERM)
"""
OPTIONS = [
    "--model.quantize", "null", "--model.adapter.rank", 4, "--model.optimizer.lr", 1e-3, "--data.datasets=[rows.jsonl]",
    "--data.batch_size", 2, "--data.max_rows", 24, "--trainer.accelerator", "cpu", "--trainer.precision", "32-true",
    "--trainer.accumulate_grad_batches", 2, "--trainer.max_epochs", 3, "--trainer.log_every_n_steps", 1, "--trainer.devices", 2,
    "--trainer.strategy", "ddp", "--trainer.callbacks+=program.Watch",
]  # fmt: skip
LITTLE = {"FREE": f"{2**36} {41 * 10**6}", "ROOM": "999 60"}  # on the second: activations are computed again, a step in two or more parts


@pytest.fixture
def fit(ltune, rows, tmp_path):
    """Run `ltune fit` on two ranks: what the first ends with, and each rank's setting."""
    (tmp_path / "program.py").write_text(PROGRAM)

    def run(name, **environment):
        done = ltune("fit", "--run", name, *OPTIONS, ranks=2, env={"PYTHONPATH": str(tmp_path), **environment})
        said = [tmp_path / f"{name}-{rank}.txt" for rank in range(2)]
        return done, [file.read_text() for file in said if file.exists()]

    return run


def test_a_stopped_run_goes_on_in_the_same_bits(fit, tmp_path):
    """One setting of the memory for both: micro-batches of another size round in their own way, and the checkpoint has one."""
    whole, settings = fit("whole", **LITTLE)
    assert whole.returncode == 0, whole.stderr
    assert settings[0] == settings[1]
    assert int(re.search(r"up to (\d+) tokens, activations computed again", settings[0])[1]) <= 60
    assert "the GPU's memory was full; going on with micro-batches of up to" in whole.stderr
    assert fit("stopped", **LITTLE, STOP="3")[0].returncode == 143
    again, found = fit("stopped", **LITTLE)
    assert (again.returncode, found) == (0, settings)
    first, second = (load_file(tmp_path / run / "adapter" / "adapter_model.safetensors") for run in ("whole", "stopped"))
    assert all(bool((first[name] == second[name]).all()) for name in first)


def test_only_the_rank_that_has_them_names_rows_that_are_bad(fit):
    done, _ = fit("bad", FREE=f"{2**36} {2**36}", BAD="1")
    assert done.returncode != 0
    assert "the loss is nan at step 1; the optimizer step was not taken.\nrows: on another rank" in done.stderr
    assert "the loss is nan at step 1; the optimizer step was not taken.\nrows: rows.jsonl:" in done.stderr


def test_one_rank_speaks_for_all(fit):
    """But for warnings, which may be one's own."""
    done, _ = fit("short", **LITTLE, STOP="1")
    said = done.stderr.splitlines()
    assert sum("memory: micro-batches" in line for line in said) == sum("stopped by SIGTERM" in line for line in said) == 1
    full = [line for line in said if "the GPU's memory was full" in line]
    assert sum(line.startswith("rank 1: ") for line in full) == len(full) // 2 > 0
