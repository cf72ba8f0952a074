"""What is compiled while weights are read is all that a run launches."""

import json
import os
import subprocess
import sys

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

# Arguments: ltune's. Prints how many kernels were compiled ahead, and the names of those compiled at their first launch
COUNTED = """
import json, sys
from triton import knobs
from ltune.cli import main
ahead, late = [], []
knobs.runtime.jit_post_compile_hook = lambda *, fn, is_manual_warmup, **_: (ahead if is_manual_warmup else late).append(fn.name)
code = main()
print(json.dumps({"ahead": ahead, "late": late}))
sys.exit(code)
"""


@pytest.mark.parametrize(
    "options",
    [
        [], ["--model.memory", "least"], ["--data.tokens_per_batch", "8192"], ["--model.quantize", "null"],
        ["--model.adapter", "LoRA", "--model.adapter.dropout", "0.1"],
    ],
    ids=["rows", "least", "tokens", "not quantized", "dropout"],
)  # fmt: skip
def test_no_kernel_is_compiled_late(tmp_path, options):
    command = [sys.executable, "-c", COUNTED, "fit", "--config", "configs/quickstart.yaml", "--trainer.precision", "bf16-true"]
    command += ["--trainer.accelerator", "gpu", "--trainer.max_epochs", "2", "--trainer.max_steps", "-1", "--run", str(tmp_path / "run")]
    fresh = os.environ | {"TRITON_CACHE_DIR": str(tmp_path / "triton")}
    done = subprocess.run([*command, *options], capture_output=True, text=True, env=fresh)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["ahead"]) > 10
    assert found["late"] == []
