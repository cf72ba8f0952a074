"""Triton's kernels against the formulas that stand beside them, on the CPU; test_kernels.py runs this file with TRITON_INTERPRET=1."""

from contextlib import contextmanager

import numpy
import pytest
import torch

from ltune.errors import UsageError
from ltune.models.fast import (
    attention,
    dropout,
    gate,
    gate_lowrank,
    grouped_attention,
    launch,
    loss,
    lowrank_backward,
    norm,
    rotary,
    tiles,
)
from ltune.models.fast.room import has_room, room, roomy
from ltune.models.fast.tiles import Lent, Rows

HALF, FULL = torch.float16, torch.float32  # the interpreter cannot multiply bfloat16
LENGTHS = (37, 0, 1, 70, 0, 0, 5)


@contextmanager
def kernels():
    """Within it work on the CPU goes to the kernels."""
    launch.INTERPRETED = True
    try:
        yield
    finally:
        launch.INTERPRETED = False


def both(function, *arguments):
    """What the kernel and what the formula gives, each with inputs of its own."""
    found = []
    for interpreted in (True, False):
        given = [argument.clone() if isinstance(argument, torch.Tensor) else argument for argument in arguments]
        if not interpreted:
            found.append(function(*given))
            continue
        with kernels():
            found.append(function(*given))
    return found


def assert_near(found, expected, dtype):
    """Within a few times what rounding to the dtype makes of numbers about 1, which inputs are."""
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    distance = torch.linalg.norm(found.double() - expected.double())
    bound = 4 * torch.finfo(dtype).eps * (torch.linalg.norm(expected.double()) + expected.numel() ** 0.5)
    assert distance <= bound, f"{distance:.2e} > {bound:.2e}"


# -- attention ------------------------------------------------------------------------------------------------------------------------


def attended(lengths, heads, key_heads, width, window, dtype, lent=None, rotated=1.0, room=False):
    """o, lse, and the gradients side by side, of queries, keys and values that lie in one buffer, as they do in a layer."""
    torch.manual_seed(7)
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    angle = torch.randn(sum(lengths), int(width * rotated) // 2)
    rows, scale = Rows(starts, max(lengths), lent), width**-0.5
    buffer = torch.randn(sum(lengths), heads + 2 * key_heads, width).to(dtype)
    split = buffer.split([heads, key_heads, key_heads], 1)
    do = torch.randn(sum(lengths), heads, width).to(dtype)
    saved = attention.attend(*split, rows, scale, window, room)
    assert has_room(saved[0].flatten(1)) == (room and launch.INTERPRETED)
    gradients = attention.attend_backward(do, *split, saved, rows, scale, window, rotary.Turn(angle.cos(), angle.sin()), room)
    assert has_room(gradients) == room
    return *saved[:2], gradients


@pytest.mark.parametrize(
    ("heads", "key_heads", "width", "window", "dtype"),
    [
        (4, 1, 64, None, FULL),
        (4, 1, 64, None, HALF),
        (2, 2, 96, 40, FULL),
        (8, 1, 128, 7, HALF),
        (6, 2, 24, None, FULL),
        (2, 1, 256, 1, FULL),
    ],
)
@pytest.mark.parametrize(("rotated", "room"), [(1.0, False), (0.5, True)])
def test_attention(heads, key_heads, width, window, dtype, rotated, room):
    found, expected = both(attended, LENGTHS, heads, key_heads, width, window, dtype, None, rotated, room)
    for one, other in zip(found, expected, strict=True):
        assert_near(one, other, dtype)


@pytest.mark.parametrize("seed", range(4))
def test_attention_of_any_rows(monkeypatch, seed):
    monkeypatch.setattr(tiles, "SHORT_ROWS", 10 * seed)  # rows are cut up as longer ones are
    draw = numpy.random.default_rng(seed)
    lengths = tuple(int(length) for length in draw.choice([0, 1, *draw.integers(1, 200, 3)], 4)) + (3,)
    key_heads, group = int(draw.integers(1, 3)), int(draw.integers(1, 6))
    window = [None, int(draw.integers(1, 200))][seed % 2]
    found, expected = both(attended, lengths, key_heads * group, key_heads, 32, window, FULL)
    for one, other in zip(found, expected, strict=True):
        assert_near(one, other, FULL)


def test_many_rows_find_their_places():
    found, expected = both(attended, (1, *[0] * 63, 3, 0, 2), 2, 1, 16, None, FULL)  # more than are looked through at once
    for one, other in zip(found, expected, strict=True):
        assert_near(one, other, FULL)


def test_a_row_whose_places_32_bits_cannot_tell_is_refused():
    q, k, v = torch.empty(400_000, 48, 128, device="meta").split([32, 8, 8], 1)
    rows = Rows(torch.tensor([0, 400_000], dtype=torch.int32), 400_000)
    with pytest.raises(UsageError, match="a row of 400,000 tokens: .* up to 345,921"):
        grouped_attention.attend_grouped(q, k, v, rows, 1.0, None)
    with pytest.raises(UsageError, match="a row of 400,000 tokens"):
        grouped_attention.attend_grouped_backward(q, q, k, v, q, q[..., 0], rows, 1.0, None, rotary.Turn(q, q), q)


@pytest.mark.parametrize(
    ("heads", "key_heads", "width", "window", "dtype", "few"),
    [
        (4, 1, 64, None, FULL, False), (4, 1, 64, None, HALF, True), (2, 2, 96, 40, FULL, True), (8, 1, 128, 7, HALF, True),
        (6, 2, 24, 1, FULL, False),
    ],
)  # fmt: skip
def test_attention_to_lent_tokens(heads, key_heads, width, window, dtype, few):
    #          lent by 0    lone  lent by 5   nothing borrows, and rows that fill up
    lengths = (5, 7, 1, 40, 9, 70, 3, 20, 2, 0, 0)
    borrowed = torch.tensor([0, 0, 5, 10, 15, 15, 15, 85, 155, 155, 155, 155], dtype=torch.int32)
    lenders = torch.tensor([0, 0, 0, 0, 0, 0, 62, 62, 0, 0, 0, 0], dtype=torch.int32)
    borrowers = torch.tensor([0, 3, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0], dtype=torch.int32)
    lent = Lent(lenders, borrowed, borrowers, 160 if few else 400)  # tokens that there is room for
    found, expected = both(attended, lengths, heads, key_heads, width, window, dtype, lent)
    for one, other in zip(found, expected, strict=True):
        assert_near(one, other, dtype)
    unlike = attended(lengths, heads, key_heads, width, window, dtype)
    assert window == 1 or not torch.equal(unlike[2], found[2])


# -- the others -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [FULL, HALF])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_norm(dtype, offset):
    torch.manual_seed(1)
    x, dy, add, weight = torch.randn(9, 72).to(dtype), torch.randn(9, 72).to(dtype), torch.randn(9, 72).to(dtype), torch.randn(72)
    for one, other in zip(*both(norm.rms_norm, x, weight, 1e-5, offset), strict=True):
        assert_near(one, other, dtype)
    r = norm.rms_norm(x, weight, 1e-5, offset)[1]
    for more in [(None, False), (add, False), (None, True), (add, True)]:
        found, expected = both(norm.rms_norm_backward, dy, x, r, weight, offset, *more)
        assert_near(found[0], expected[0], dtype)
        assert (found[1] is None) == (expected[1] is None) == (not more[1])
        if more[1]:
            assert_near(found[1], expected[1], FULL)
    y = norm.rms_norm(x, weight, 1e-5, offset)[0]
    told, expected = both(norm.rms_norm_backward, dy, y, r, weight, offset, add, False, False, True)
    assert_near(told[0], expected[0], dtype)
    assert_near(told[0], norm.rms_norm_backward(dy, x, r, weight, offset, add)[0], dtype)


def test_room_behind_rows():
    torch.manual_seed(1)
    x, weight, gate_up = torch.randn(9, 72), torch.randn(72), roomy(9, 144, torch.empty(0)).copy_(torch.randn(9, 144))
    with_room = roomy(9, 72, x).copy_(torch.randn(9, 72))
    angle, heads = torch.randn(9, 12), [torch.randn(9, heads, 24) for heads in (3, 2, 2)]

    def everything(x):
        y, r = norm.rms_norm(x, weight, 1e-5, 0.0, True)
        dx, _ = norm.rms_norm_backward(with_room, x, r, weight, 0.0, y, False, True)
        gathered = roomy(9, 7 * 24, x)
        rotary.gather_rotated_back(*heads, angle.cos(), angle.sin(), gathered)
        assert all(map(has_room, (y, dx, gathered)))
        h = gate.gated(gate_up, False, True)
        assert has_room(h)
        assert_near(norm.rms_norm_backward(with_room, y, r, weight, 0.0, y, False, True, True)[0], dx, FULL)
        return y, dx, gathered, h, *gate.gated_backward(x.clone(), gate_up.clone(), False)

    for one, other in zip(*both(everything, x), strict=True):
        assert_near(one, other, FULL)


def test_norm_of_some_heads_of_a_buffer():
    buffer, weight = torch.randn(5, 7, 24), torch.randn(24)
    for one, other in zip(*both(lambda x: norm.rms_norm(x[:, 2:5], weight, 1e-6, 0.0), buffer), strict=True):
        assert_near(one, other, FULL)


@pytest.mark.parametrize("dtype", [FULL, HALF])
@pytest.mark.parametrize("half", [12, 5])  # all dimensions turn, and some
def test_rotary(dtype, half):
    torch.manual_seed(2)
    angle = torch.randn(6, half)
    cos, sin = angle.cos(), angle.sin()

    def turned(heads):
        rotary.rotate(heads[:, :5], cos, sin)
        return heads

    assert_near(*both(turned, torch.randn(6, 7, 24).to(dtype)), dtype)
    gradients = [torch.randn(6, heads, 24).to(dtype) for heads in (3, 2, 2)]

    def gathered(*gradients):
        out = torch.empty(6, 7 * 24, dtype=dtype)
        rotary.gather_rotated_back(*gradients, cos, sin, out)
        return out

    assert_near(*both(gathered, *gradients), dtype)


@pytest.mark.parametrize("dtype", [FULL, HALF])
@pytest.mark.parametrize("gelu", [False, True])
def test_gate(dtype, gelu):
    torch.manual_seed(3)
    gate_up, dh = torch.randn(3, 2 * 1100).to(dtype), torch.randn(3, 1100).to(dtype)
    assert_near(*both(gate.gated, gate_up, gelu), dtype)
    for one, other in zip(*both(gate.gated_backward, dh, gate_up, gelu), strict=True):
        assert_near(one, other, dtype)


@pytest.mark.parametrize("dtype", [FULL, HALF])
@pytest.mark.parametrize(("tokens", "width", "ranks"), [(75, 200, 8), (3, 130, 16), (200, 70, 20), (40, 100, 64)])
def test_gate_with_the_low_rank_part(monkeypatch, dtype, tokens, width, ranks):
    for name in ("FORWARD", "BACKWARD"):  # shares of one tile, and of several
        monkeypatch.setattr(gate_lowrank, name, getattr(gate_lowrank, name)._replace(programs=5))
    torch.manual_seed(3)
    gate_up = roomy(tokens, 2 * width, torch.empty(0, dtype=dtype)).copy_(torch.randn(tokens, 2 * width))
    dh, dz = torch.randn(tokens, width).to(dtype), torch.randn(tokens, ranks + 3).to(dtype)[:, :ranks]
    a = (torch.randn(ranks + 2, width + 3) / width**0.5).to(dtype)[:ranks, :width]
    expected, h = gate.gated_backward(dh, gate_up, False)
    with kernels():
        for with_room in (False, True):
            gated, z = gate_lowrank.gated_low_rank(gate_up, False, a, with_room)
            assert_near(gated, h, dtype)
            assert_near(z, (h.double() @ a.double().mT).to(dtype), dtype)
            assert z.is_contiguous()
            assert has_room(gated) == with_room
        assert torch.equal(room(gated)[:, :ranks], z)
        assert not room(gated)[:, ranks:].any()
        found, da = gate_lowrank.gated_backward_low_rank(dh, gate_up, False, dz)
    assert_near(found, expected, dtype)
    assert_near(da / tokens**0.5, dz.float().mT @ h.float() / tokens**0.5, FULL if dtype is FULL else HALF)


@pytest.mark.parametrize("dtype", [FULL, HALF])
@pytest.mark.parametrize(("tokens", "width", "ranks"), [(300, 600, 16), (3, 130, 24), (200, 20_000, 1), (150, 300, 40)])
def test_what_the_low_rank_part_wants_of_a_gradient(monkeypatch, dtype, tokens, width, ranks):
    monkeypatch.setattr(lowrank_backward, "PROGRAMS", 5)
    torch.manual_seed(3)
    dy = roomy(tokens, width, torch.empty(0, dtype=dtype)).copy_(torch.randn(tokens, width))
    z, b = torch.randn(tokens, ranks + 1).to(dtype)[:, 1:], (torch.randn(width, 64) / width**0.5).to(dtype)[:, :ranks]
    with kernels():
        db = lowrank_backward.low_rank_backward(dy, z, b, room(dy))
    assert_near(room(dy)[:, :ranks], (dy.double() @ b.double()).to(dtype), dtype)
    assert not room(dy)[:, ranks:].any()
    torch.testing.assert_close(db, (dy.double().mT @ z.double()).float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [FULL, HALF])
@pytest.mark.parametrize(("tokens", "width", "ranks", "layers"), [(75, 200, 8, 1), (3, 130, 24, 3), (140, 71, 20, 2), (40, 64, 100, 3)])
def test_what_is_dropped_before_the_low_rank_part(monkeypatch, dtype, tokens, width, ranks, layers):
    for name in ("DOWN", "GRADIENT"):  # shares of one tile, and of several
        monkeypatch.setattr(dropout, name, getattr(dropout, name)._replace(programs=5))
    torch.manual_seed(3)
    like = torch.empty(0, dtype=dtype)
    x = roomy(tokens, width, like).copy_(torch.randn(tokens, width))
    a, dz = (torch.randn(ranks, width + 3) / width**0.5).to(dtype)[:, :width], torch.randn(tokens, ranks + 3).to(dtype)[:, :ranks]
    draw = dropout.Draw(torch.tensor([2**61 + 2**33 + 5]), 1000)
    mask = dropout.Mask(draw, 7, 0.3, (torch.arange(ranks) * layers // ranks).int(), layers)

    def computed(x, dx):
        z = torch.full((tokens, ranks + 5), 9, dtype=dtype)
        dropout.down(x, a, mask, z)
        return z, dropout.gradient(dz, x, mask) / tokens**0.5, dropout.add_up(dx, dz, a, mask)

    for one, other in zip(*both(computed, x, torch.randn(tokens, width).to(dtype)), strict=True):
        assert_near(one, other, dtype)


@pytest.mark.parametrize("dtype", [FULL, HALF])
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(dtype, gradient, smoothing):
    torch.manual_seed(4)
    logits, targets = (3 * torch.randn(4, 9000)).to(dtype), torch.tensor([0, 8999, 17, 8192])

    def entropy(logits):
        return loss.cross_entropy_(logits, targets, gradient, smoothing), logits

    for one, other in zip(*both(entropy, logits), strict=True):
        assert_near(one, other, dtype)
