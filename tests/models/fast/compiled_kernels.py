"""What Triton's kernels want as compiled for a GPU that need not be there; test_kernels.py runs this file."""

import pytest
from triton import compile as compiled
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ltune.models.fast import gate_lowrank, lowrank_backward


@pytest.mark.parametrize("ranks", [16, 32, 64])
def test_shared_memory_as_compiled_for_hopper(ranks):
    tokens, stages = lowrank_backward.SIZES[ranks]
    constants = {"RANKS": ranks, "COLUMNS": lowrank_backward.COLUMNS, "TOKENS": tokens}
    options = {"num_warps": lowrank_backward.WARPS, "num_stages": stages}
    assert shared_memory(lowrank_backward._low_rank_backward, constants, options, wide={"of_dz", "db"}) <= 227 * 1024
    for kernel, sizes in (
        (gate_lowrank._gated_low_rank, gate_lowrank.FORWARD),
        (gate_lowrank._gated_backward_low_rank, gate_lowrank.BACKWARD),
    ):
        constants = {"GELU": False, "COMPILED": True, "RANKS": ranks, "COLUMNS": sizes.columns, "TOKENS": sizes.tokens}
        options = {"num_warps": sizes.warps, "num_stages": sizes.stages}
        assert shared_memory(kernel, constants, options, wide={"da", "of_z"}) <= 99 * 1024  # as on cards for games, too


def shared_memory(kernel, constants, options, wide):
    """Bytes that it wants where rows begin at multiples of 16 bytes; of its arguments those in capitals are constants, those in ``wide``
    float32, pointers bfloat16, the rest whole numbers."""
    pointers = {"dy", "z", "b", "dh", "gate_up", "dz", "a", "h"} | wide
    kinds = {name: "*fp32" if name in wide else "*bf16" if name in pointers else "i32" for name in kernel.arg_names}
    kinds |= dict.fromkeys(constants, "constexpr")
    places = {name: (number,) for number, name in enumerate(kernel.arg_names)}
    aligned = {places[name]: [["tt.divisibility", 16]] for name in kernel.arg_names if name not in {*constants, "tokens", "share"}}
    source = ASTSource(kernel, kinds, {places[name]: value for name, value in constants.items()}, aligned)
    return compiled(source, target=GPUTarget("cuda", 90, 32), options=options).metadata.shared
