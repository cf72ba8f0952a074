"""Triton's kernels give what the formulas beside them give, and fit the GPU they are for, in processes that have Triton.

torch's CPU build comes without it: `make test` puts it into a folder of its own, so that nothing else sees it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(sys.prefix) / "triton"  # as in the Makefile


@pytest.mark.skipif(
    not (FOLDER / "triton").is_dir(),
    reason=f"Triton is not there: pip install --no-deps --target {FOLDER} triton==3.9.0",
)
@pytest.mark.parametrize(("file", "interpret"), [("interpreted_kernels.py", "1"), ("compiled_kernels.py", "0")])
def test_kernels(file, interpret):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(Path(__file__).with_name(file))]
    environment = {**os.environ, "TRITON_INTERPRET": interpret, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(FOLDER)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
