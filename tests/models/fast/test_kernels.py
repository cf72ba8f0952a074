"""Triton's kernels give what the formulas beside them give: interpreted_kernels.py, in a process where Triton interprets kernels."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ltune.models.fast import gate_lowrank, lowrank_backward


def test_kernels_in_the_interpreter():
    triton = pytest.importorskip("triton", reason="Triton is not installed: pip install triton==3.9.0")
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9):
        pytest.skip(f"Triton {triton.__version__} does not interpret kernels with a new NumPy: pip install triton==3.9.0")
    file = Path(__file__).with_name("interpreted_kernels.py")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(file)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


@pytest.mark.parametrize("ranks", [16, 32, 64])
def test_shared_memory_as_compiled_for_hopper(ranks):
    pytest.importorskip("triton", reason="Triton is not installed: pip install triton==3.9.0")
    tokens, stages = lowrank_backward.SIZES[ranks]
    constants = {"RANKS": ranks, "COLUMNS": lowrank_backward.COLUMNS, "TOKENS": tokens}
    options = {"num_warps": lowrank_backward.WARPS, "num_stages": stages}
    assert shared_memory(lowrank_backward._low_rank_backward, constants, options, wide={"of_dz", "db"}) <= 227 * 1024
    constants = {"GELU": False, "COMPILED": True, "RANKS": ranks, "COLUMNS": gate_lowrank.COLUMNS, "TOKENS": gate_lowrank.TOKENS}
    options = {"num_warps": gate_lowrank.WARPS, "num_stages": gate_lowrank.STAGES}
    assert shared_memory(gate_lowrank._gated_backward_low_rank, constants, options, wide={"da"}) <= 48 * 1024


def shared_memory(kernel, constants, options, wide):
    """Bytes that it wants where rows begin at multiples of 16 bytes; of its arguments those in capitals are constants, those in ``wide``
    float32, pointers bfloat16, the rest whole numbers."""
    from triton import compile as compiled
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    pointers = {"dy", "z", "b", "dh", "gate_up", "dz"} | wide
    kinds = {name: "*fp32" if name in wide else "*bf16" if name in pointers else "i32" for name in kernel.arg_names}
    kinds |= dict.fromkeys(constants, "constexpr")
    places = {name: (number,) for number, name in enumerate(kernel.arg_names)}
    aligned = {places[name]: [["tt.divisibility", 16]] for name in kernel.arg_names if name not in {*constants, "tokens", "share"}}
    source = ASTSource(kernel, kinds, {places[name]: value for name, value in constants.items()}, aligned)
    return compiled(source, target=GPUTarget("cuda", 90, 32), options=options).metadata.shared
