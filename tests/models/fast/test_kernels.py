"""Triton's kernels give what the formulas beside them give: interpreted_kernels.py, in a process where Triton interprets kernels."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_kernels_in_the_interpreter():
    triton = pytest.importorskip("triton", reason="Triton is not installed: pip install triton==3.9.0")
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9):
        pytest.skip(f"Triton {triton.__version__} does not interpret kernels with a new NumPy: pip install triton==3.9.0")
    file = Path(__file__).with_name("interpreted_kernels.py")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(file)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
