"""Kernels that are compiled while weights are read, which both take seconds: the larger part of a first run's start.

A model's outline goes through a step on torch's meta device, where launches are only noted (launch.py). What they would launch is compiled
meanwhile, by several threads: ptxas and the C compiler of the launchers are processes of their own. It is a forecast: a kernel that it
misses is compiled when it is launched, and one too many has cost no one's time.
"""

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ltune.models.fast.build import ROWS
from ltune.models.fast.launch import Launch, noted
from ltune.models.fast.memory import Setting
from ltune.models.fast.model import FastModel
from ltune.models.fast.stack import NormStep
from ltune.models.fast.tiles import Lent, Rows
from ltune.models.fast.training_graphs import LENT, SHORT
from ltune.models.outline import Outline

WORKERS = min(8, os.cpu_count() or 1)
LONGEST = 512  # tokens of the rows of a foreseen step; those of all batches of short rows (tiles.py) take the same kernels
MANY = 16 * LENT  # borrowed tokens, of few rows

log = logging.getLogger(__name__)


@contextmanager
def compiled_meanwhile(
    outlined: Callable[[], Outline], dtype: torch.dtype, likely: Callable[[FastModel], Setting], device: torch.device
) -> Iterator[None]:
    """Within it the kernels of steps are compiled; it is left when they are ready.

    Args:
        outlined: Makes the model on the meta device; it may fail, and nothing is compiled then.
        dtype: Of the products.
        likely: The setting that steps will probably have.
        device: That they will run on.
    """
    pool = ThreadPoolExecutor(WORKERS, initializer=torch.cuda.set_device, initargs=(device,))
    try:
        fast = FastModel(outlined().causal, dtype)
        launches = foreseen(fast, likely(fast))
    except Exception as error:  # whatever it is, the model itself says it, or does without an outline
        log.debug("no kernels are compiled ahead: %s", error)
        launches = []
    jobs = [pool.submit(_compile, one) for one in launches]
    try:
        yield
        for job in jobs:
            if problem := job.exception():
                log.debug("a kernel was not compiled ahead: %s", problem)
    finally:
        pool.shutdown(cancel_futures=True)


def _compile(one: Launch) -> None:
    compiled = one.kernel.warmup(*one.arguments, grid=one.grid, **one.options)
    compiled.run  # noqa: B018 (its launcher is compiled when it is asked for)


def foreseen(fast: FastModel, setting: Setting) -> list[Launch]:
    """What is launched to prove the model, and in steps of up to ``setting.tokens`` tokens; each kernel once, those of the forward first.

    Args:
        fast: On the meta device; it takes on the setting.
        setting: Of the steps.
    """
    with noted() as launches:
        fast.decoder.eval()
        with torch.no_grad():
            fast.norm.forward(_outputs(fast, sum(ROWS), len(ROWS)))
        fast.adopt(setting)
        fast.decoder.train()
        for tokens in sorted({setting.tokens, -(-setting.tokens // 2)}):
            for borrowed in (0, LENT, MANY):
                _step(fast, tokens, borrowed)
    return list({kind_of(one): one for one in launches}.values())


def kind_of(one: Launch) -> tuple:
    """Launches of the same kind share a compiled kernel."""
    named = zip(one.kernel.params, one.arguments, strict=False)
    return one.kernel, tuple(_kind(known, value) for known, value in named), tuple(sorted(one.options.items()))


def _kind(known: Any, value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.dtype, value.data_ptr() % 16
    if known.is_constexpr or not isinstance(value, int):
        return value
    return known.do_not_specialize or (value == 1, value % 16, value.bit_length() > 31)


def _step(fast: FastModel, tokens: int, borrowed: int) -> None:
    """Forward and backward, rows borrowing so many tokens of others in all."""
    at = _numbers(max(1, tokens // 2))
    # As FastModel.layers_output does: a step that may be captured reads the places behind the layers
    x = _outputs(fast, tokens, 16, borrowed, None if tokens <= SHORT else at)
    hidden = NormStep.apply(x[: len(at)], fast.norm.weight, fast.norm)
    fast.losses_from(hidden, at).sum().backward()


def _outputs(fast: FastModel, tokens: int, count: int, borrowed: int = 0, at: Tensor | None = None) -> Tensor:
    places = _numbers(count + 1, torch.int32)
    lent = Lent(places, places, places, borrowed) if borrowed else None
    return fast.layers_output(_numbers(tokens), _numbers(tokens), Rows(places, min(tokens, LONGEST), lent), at)


def _numbers(count: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.empty(count, dtype=dtype, device="meta")
