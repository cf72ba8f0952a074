"""Attention of long rows by FlashAttention-4 (https://pypi.org/project/flash-attn-4), where it is installed and serves the card: the
quickest (measured).

Its gradients are the same bits each time where that is asked for. Up to EXACT tokens a row that costs little and is done always. Of rows
that borrow another's tokens, it is asked twice: for what they see of their own tokens, as of all rows, and for what they see of the lent.
"""

import logging
import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ltune.models.fast.room import laid_out, roomy
from ltune.models.fast.rotary import Turn, rotate
from ltune.models.fast.tiles import Rows

LONG = 1536  # tokens; from here on it is quicker than our own kernels, clearly enough to be loaded for it
EXACT = 49152  # up to here that costs at most a sixth of the backward, and a third at 65,536 (measured)
CAPABILITIES = (9, 10, 11)  # of CUDA devices for which it has gradients that are the same bits each time: Hopper, Blackwell's servers

log = logging.getLogger(__name__)


def serves(q: Tensor, k: Tensor, rows: Rows, window: int | None) -> bool:
    """Whether rows are long, and it takes these heads, (T, H, D) and (T, K, D)."""
    if not q.is_cuda or q.dtype is torch.float32 or not are_long(rows.lengths):
        return False
    lent = rows.lent is not None
    if lent and (window is not None or not rows.loans):
        return False
    return _proved(q.shape[1] // k.shape[1], q.shape[2], q.dtype, window is not None, lent)


def are_long(lengths: tuple[int, ...]) -> bool:
    """Whether the mean token stands in a row of LONG tokens or more (short rows it does more slowly), and none is empty."""
    return bool(lengths) and min(lengths) > 0 and sum(length * length for length in lengths) >= LONG * sum(lengths)


def attend_by_flash(q: Tensor, k: Tensor, v: Tensor, rows: Rows, scale: float, window: int | None, room: bool) -> tuple[Tensor, Tensor]:
    """o (T, H, D), and lse (H, T)."""
    o = laid_out(len(q), q.shape[1] * q.shape[2], q, room).view(q.shape)
    lse = torch.empty(q.shape[1], len(q), device=q.device)
    _package()._flash_attn_fwd(q, k, v, out=o, lse=lse, return_lse=True, **_places(rows, scale, window))
    for begin, middle, end in rows.loans:
        _add_lent(q[middle:end], k[begin:middle], v[begin:middle], o[middle:end], lse[:, middle:end], scale)
    return o, lse


def _add_lent(q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, scale: float) -> None:
    """What rows that borrow see of the lent keys and values, put together in place with what they see of their own:

    lse = log(exp(lse_own) + exp(lse_lent)),   o = exp(lse_own - lse) o_own + exp(lse_lent - lse) o_lent
    """
    o_lent, lse_lent = _package()._flash_attn_fwd(q[None], k[None], v[None], softmax_scale=scale, return_lse=True)[:2]
    both = torch.logaddexp(lse, lse_lent[0])
    own, lent = ((one - both).exp().T[..., None] for one in (lse, lse_lent[0]))  # (T, H, 1)
    o.copy_(own * o + lent * o_lent[0])
    lse.copy_(both)


def attend_by_flash_backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    rows: Rows,
    scale: float,
    window: int | None,
    turn: Turn,
    out: Tensor,
) -> None:
    """The gradients of q, k and v side by side into ``out`` (T, (H + 2 K) D), those of q and k turned back."""
    (tokens, heads, width), key_heads = q.shape, k.shape[1]
    gradients = out.view(tokens, -1, width)
    dq, dk, dv = gradients.split([heads, key_heads, key_heads], 1)
    exact = max(rows.lengths) <= EXACT or torch.are_deterministic_algorithms_enabled()
    if not exact:
        _say_that_bits_differ()
    _package()._flash_attn_bwd(q, k, v, o, do, lse, dq=dq, dk=dk, dv=dv, deterministic=exact, **_places(rows, scale, window))
    for begin, middle, end in rows.loans:  # the probabilities follow from lse, which counts lent and own keys; so each part may go alone
        lent, own = slice(begin, middle), slice(middle, end)
        inputs = q[own], k[lent], v[lent], o[own], do[own], lse[:, own].contiguous()
        parts = _package()._flash_attn_bwd(*(one[None] for one in inputs), softmax_scale=scale, deterministic=exact)
        for whole, part in zip((dq[own], dk[lent], dv[lent]), parts, strict=True):
            whole += part[0]
    rotate(gradients[:, : heads + key_heads], turn.cos, -turn.sin)


def _places(rows: Rows, scale: float, window: int | None) -> dict[str, Any]:
    starts, longest = rows.starts[: len(rows.lengths) + 1], max(rows.lengths)
    found = {"cu_seqlens_q": starts, "cu_seqlens_k": starts, "max_seqlen_q": longest, "max_seqlen_k": longest, "softmax_scale": scale}
    return found | ({"causal": True} if window is None else {"window_size_left": window - 1, "window_size_right": 0})


@cache
def _say_that_bits_differ() -> None:
    log.info(
        "rows of more than %d tokens: the quickest attention is used, whose gradients differ in the last bits each time.\n"
        "Where a resumed run must end in the same bits, set  trainer.deterministic: true  (their attention is slower by a fifth or more).",
        EXACT,
    )


# -- the package ----------------------------------------------------------------------------------------------------------------------


@cache
def installed() -> bool:
    """Whether it is there, for this card."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] in CAPABILITIES and _package() is not None


@cache
def _package() -> Any:
    try:
        from flash_attn.cute import interface
    except ModuleNotFoundError as error:
        if error.name in ("flash_attn", "flash_attn.cute"):
            return None
        problem = str(error)
    except Exception as error:  # of another package that it needs
        problem = f"{type(error).__name__}: {error}".splitlines()[0]
    else:
        warnings.filterwarnings("ignore", message="Argument aux_")  # of its own arguments
        return interface
    log.warning("FlashAttention-4 is installed, but cannot be imported: %s", problem)
    return None


@cache
def _proved(group: int, width: int, dtype: torch.dtype, windowed: bool, lent: bool = False) -> bool:
    """Whether it comes to what the formula does, on a small batch; its kernels are compiled for that."""
    if not installed():
        return False
    try:
        problem = None if _distance(group, width, dtype, LONG - 100 if windowed else None, lent) < 0.02 else "its results are wrong"
    except torch.OutOfMemoryError:  # the step goes on with less, and asks again
        raise
    except Exception as error:  # of a package whose versions are not yet released, and a compiler
        problem = f"{type(error).__name__}: {error}".splitlines()[0]
    if problem is not None:
        log.warning("FlashAttention-4 is not used for heads of %d dimensions%s: %s", width, " where rows begin alike" * lent, problem)
        return False
    _say_that_it_is_used()
    return True


@cache
def _say_that_it_is_used() -> None:
    log.info("rows of about %d tokens or more: attention by FlashAttention-4", LONG)


@torch.inference_mode(False)
def _distance(group: int, width: int, dtype: torch.dtype, window: int | None, lent: bool) -> float:
    """The largest relative distance between its outputs and gradients and the formula's: of two rows, of which one may borrow the other."""
    lengths, key_heads, drawn = (LONG + 50, 300), 2, torch.Generator("cuda").manual_seed(0)
    tokens, heads, scale = sum(lengths), group * key_heads, width**-0.5
    starts = torch.tensor([0, *lengths], device="cuda").cumsum(0).to(torch.int32)
    rows = Rows(starts, tokens, lengths=lengths, loans=((0, lengths[0], tokens),) if lent else ())
    qkv = torch.randn(tokens, heads + 2 * key_heads, width, device="cuda", dtype=dtype, generator=drawn)
    do = torch.randn(tokens, heads, width, device="cuda", dtype=dtype, generator=drawn)
    turn = Turn(torch.ones(tokens, width // 2, device="cuda"), torch.zeros(tokens, width // 2, device="cuda"))
    split = [heads, key_heads, key_heads]
    q, k, v = qkv.split(split, 1)
    o, lse = attend_by_flash(q, k, v, rows, scale, window, True)
    gradients = roomy(tokens, qkv.shape[1] * width, qkv)
    attend_by_flash_backward(do, q, k, v, o, lse, rows, scale, window, turn, gradients)
    with torch.enable_grad():
        exact = qkv.float().requires_grad_()
        seen = exact.split((tokens,) if lent else lengths)  # with all that it borrows, a row is one like others
        expected = torch.cat([_formula(row.transpose(0, 1), split, scale, window).transpose(0, 1) for row in seen])
        wanted = torch.autograd.grad(expected, exact, do.float())[0]
    pairs = [(o, expected.detach()), *zip(gradients.view(qkv.shape).split(split, 1), wanted.split(split, 1), strict=True)]
    return max(float((one - other).norm() / other.norm()) for one, other in pairs)


def _formula(qkv: Tensor, split: list[int], scale: float, window: int | None) -> Tensor:
    """(H, L, D) of a row's (H + 2 K, L, D)."""
    q, k, v = qkv.split(split)
    place = torch.arange(q.shape[1], device=q.device)
    back = place[:, None] - place
    seen = (back >= 0) & (back < (window or len(place)))
    return functional.scaled_dot_product_attention(q, k, v, seen, scale=scale, enable_gqa=True)
