"""What Triton's kernels want as compiled for a GPU that need not be there; test_kernels.py runs this file."""

import pytest
import torch
from triton import compile as compiled
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ltune.models.adapters import LoRA
from ltune.models.fast import ahead, dropout, gate_lowrank, grouped_attention, launch, lowrank_backward
from ltune.models.fast.layer import Keep
from ltune.models.fast.memory import Setting
from ltune.models.fast.model import FastModel
from ltune.models.fast.rotary import Turn
from ltune.models.fast.tiles import SHORT_ROWS, Lent, Rows
from ltune.models.outline import outline
from ltune.models.quantize import NF4

ADA, HOPPER = GPUTarget("cuda", 89, 32), GPUTarget("cuda", 90, 32)


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
    aligned = [name for name in kernel.arg_names if name not in {*constants, "tokens", "share"}]
    return compiled_for(HOPPER, kernel, kinds, constants, aligned, options).metadata.shared


def compiled_for(target, kernel, kinds, values, aligned, options):
    """Compiled; ``values`` has at least those of the constants, ``aligned`` names what is a multiple of 16."""
    places = {name: (number,) for number, name in enumerate(kernel.arg_names)}
    constants = {places[name]: values[name] for name, kind in kinds.items() if kind == "constexpr"}
    source = ASTSource(kernel, kinds, constants, {places[name]: [["tt.divisibility", 16]] for name in aligned})
    return compiled(source, target=target, options=options)


@pytest.mark.parametrize(("ranks", "layers"), [(8, 1), (24, 3), (64, 1), (192, 3), (256, 2)])
def test_dropout_fits_on_cards_for_games_too(ranks, layers):
    def empty(*shape, dtype=torch.bfloat16):
        return torch.empty(*shape, dtype=dtype, device="meta")

    draw = dropout.Draw(empty(1, dtype=torch.int64))
    mask = dropout.Mask(draw, 5, 0.1, empty(ranks, dtype=torch.int32), layers)
    x, z, a = empty(1024, 4096), empty(1024, ranks), empty(ranks, 4096)
    with launch.noted() as launches:
        dropout.down(x, a, mask, z)
        dropout.gradient(z, x, mask)
        dropout.add_up(x, z, a, mask)
    assert len(launches) == 4
    for one in launches:
        assert as_launched(one, ADA).metadata.shared <= 99 * 1024, one.kernel.__name__


@pytest.mark.parametrize("width", [128, 256])
def test_attention_fits_on_cards_for_games_too(width):
    """It asks for less shared memory than they have, and for more than short rows do."""
    q, k, v, do, o = (torch.empty(8192, heads, width, dtype=torch.bfloat16, device="meta") for heads in (32, 8, 8, 32, 32))
    places = torch.empty(9, dtype=torch.int32, device="meta")
    rows = Rows(places, 2 * SHORT_ROWS, Lent(places, places, places, 512))
    turn = Turn(*torch.empty(2, 8192, width // 2, dtype=torch.bfloat16, device="meta"))
    out = torch.empty(8192, 48 * width, dtype=torch.bfloat16, device="meta")
    with launch.noted() as launches:
        _, lse = grouped_attention.attend_grouped(q, k, v, rows, 0.1, None)
        grouped_attention.attend_grouped_backward(do, q, k, v, o, lse, rows, 0.1, None, turn, out)
    assert len(launches) == 5
    for one in launches:
        assert as_launched(one, ADA).metadata.shared <= 99 * 1024, one.kernel.__name__


@pytest.mark.parametrize("adapter", [LoRA(), LoRA(dropout=0.1)], ids=["", "dropout"])
def test_every_kernel_of_a_step_compiles_for_hopper(adapter):
    found = outline("tiny", dtype=torch.bfloat16, quantize=NF4(), adapter=adapter, layers=2)
    launches = ahead.foreseen(FastModel(found.causal, torch.bfloat16), Setting(1024))
    lent_at_once = grouped_attention._forward.arg_names.index("LENT")
    assert {one.arguments[lent_at_once] for one in launches if one.kernel is grouped_attention._forward} == {0, 16, 32}
    for one in launches:
        as_launched(one, HOPPER)


def as_launched(one, target):
    """Compiled for what it was launched with."""
    named = dict(zip(one.kernel.arg_names, one.arguments, strict=False)) | one.options
    options = {name: named.pop(name) for name in ("num_warps", "num_stages") if name in named}
    kinds = {param.name: kind_of(param, named[param.name]) for param in one.kernel.params}
    aligned = [name for name, kind in kinds.items() if kind.startswith("*") or (kind == "i32" and "stride" in name)]
    return compiled_for(target, one.kernel, kinds, named, aligned, options)


def kind_of(param, value):
    if param.is_constexpr or value is None:
        return "constexpr"
    if isinstance(value, torch.Tensor):
        return "*" + {torch.bfloat16: "bf16", torch.float32: "fp32", torch.int32: "i32", torch.int64: "i64"}[value.dtype]
    return "fp32" if isinstance(value, float) else "i32" if value < 2**31 else "i64"


@pytest.mark.parametrize("setting", [Setting(1024), Setting(1024, Keep.NOTHING, cached=False)], ids=["held", "least"])
def test_the_outline_of_a_model_tells_what_its_steps_launch(setting):
    """Each kernel of its own kinds, forward before backward; tests/gpu/test_ahead_gpu.py shows that none is missing."""
    found = outline("tiny", dtype=torch.bfloat16, quantize=NF4(), adapter=LoRA(), layers=2)
    launches = ahead.foreseen(FastModel(found.causal, torch.bfloat16), setting)
    names = [one.kernel.__name__ for one in launches]
    assert set(names) == {
        "_norm", "_norm_backward", "_rotate", "_forward", "_backward_queries", "_backward_keys", "_borrowed_keys", "_add_up",
        "_gated_low_rank", "_gated_backward_low_rank", "_add", "_cross_entropy",
    }  # fmt: skip
    assert len(set(map(ahead.kind_of, launches))) == len(launches)
    assert max(map(names.index, ("_norm", "_rotate", "_forward", "_gated_low_rank"))) < names.index("_norm_backward")
