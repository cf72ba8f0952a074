"""Triton where there is a GPU and the package; names that stand for it where there is not, so that kernels can be defined. And what several
launches have in common."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl

    FOUND = True
except ImportError:  # torch's CPU builds come without it

    class _Absent:
        """Takes the place of the package: a kernel defined with it is never launched."""

        def __getattr__(self, name: str) -> Any:
            return _as_it_is if name == "jit" else object

    def _as_it_is(function: Any = None, **options: Any) -> Any:
        return function or (lambda one: one)

    triton, tl, FOUND = _Absent(), _Absent(), False  # type: ignore[assignment]

INTERPRETED = False  # set by tests that run the kernels on the CPU, in Triton's interpreter

_noted: list["Launch"] | None = None  # while somebody wants to know


class Launch(NamedTuple):
    """One that was asked for."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: dict[str, Any]


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Run a kernel; with tensors on torch's meta device nothing runs (``noted``).

    Args:
        kernel: Of ``triton.jit``.
        grid: Programs in each dimension.
        arguments: The kernel's; the first is a tensor.
        options: The kernel's constants, warps and stages.
    """
    if _noted is not None:
        _noted.append(Launch(kernel, grid, arguments, options))
    if not arguments[0].is_meta:
        kernel[grid](*arguments, **options)


@contextmanager
def noted() -> Iterator[list[Launch]]:
    """What is launched within it."""
    global _noted
    found: list[Launch] = []
    _noted = found
    try:
        yield found
    finally:
        _noted = None


@contextmanager
def aside(like: Tensor) -> Iterator[Callable[[], None]]:
    """What is launched within it may run beside what is launched after it, until the function that it gives is called."""
    if not like.is_cuda:
        yield lambda: None
        return
    current, other = torch.cuda.current_stream(like.device), _other_stream(like.device)
    other.wait_stream(current)
    with torch.cuda.stream(other):
        yield lambda: current.wait_stream(other)


@cache
def _other_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def has_triton(tensor: Tensor) -> bool:
    """Whether work on this tensor goes to a kernel."""
    return FOUND and (on_gpu(tensor) or INTERPRETED)


def on_gpu(tensor: Tensor) -> bool:
    """Whether kernels are compiled for it: it lies on a GPU, or stands for one that does."""
    return tensor.is_cuda or tensor.is_meta


def power_of_two(count: int) -> int:
    """The first that is not less: tiles have such sizes."""
    return 1 << (count - 1).bit_length()


def tile_of(count: int) -> int:
    """A size that a product of tiles can have: a power of two, 16 or more."""
    return max(16, power_of_two(count))


@triton.jit
def once(x):
    """16-bit numbers as they are. The compiler would compute them again for a product, in the layout that it wants: it does not repeat
    what may have effects."""
    return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=False, pack=2)


def shares(tokens: int, tile: int, blocks: int, programs: int) -> tuple[int, int]:
    """How many tokens each of several programs takes, a multiple of ``tile``, and how many programs that makes: about ``programs`` over all
    ``blocks`` of columns."""
    share = tile * max(1, -(-tokens * blocks // (programs * tile)))
    return share, max(1, -(-tokens // share))
