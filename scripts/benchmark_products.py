#!/usr/bin/env python3
"""What W2's matrix products alone take on a GPU that is at them for seconds, with nothing between them, and with pauses: no step with all
that is around them can be quicker.

    python scripts/benchmark_products.py [--tokens 7744] [--read 6912] [--seconds 5]

Llama-3-8B's layers and head, forward and backward, as ltune computes them: bf16, layers side by side as one, low-rank parts as 64 further
columns, the last layer's and the head's for read places only, no gradient of the embeddings. A lasting load meets the card's limit of
power, so products are slower than in a short measurement, and quicker after a pause.
"""

import argparse
import subprocess
import time
from collections.abc import Callable

import torch
from torch import Tensor

LAYERS, HIDDEN, INNER, QKV, VOCABULARY, LOW_RANK = 32, 4096, 14336, 6144, 128256, 64
DISTINCT = 8  # layers' weights: more than fits into a cache
AT_ONCE = 2048  # positions of the head


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=7744, help="of a step, without what rows begin with in common")
    parser.add_argument("--read", type=int, default=6912, help="places of them that are trained")
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    step = products(arguments.tokens, arguments.read)
    operations = 4 * arguments.tokens * LAYERS * (HIDDEN * QKV + HIDDEN * HIDDEN + 3 * HIDDEN * INNER)
    operations += 4 * arguments.read * HIDDEN * VOCABULARY
    timed(step, arguments.seconds, 0)
    for pause in (0, 20, 40):
        ms = 1e3 * timed(step, arguments.seconds, pause)
        rate = operations / (ms - pause) / 1e9
        print(f"{ms:.1f} ms a step, {pause} of them a pause: about {rate:.0f} TFLOP/s; {state_of_the_card()}", flush=True)


def products(tokens: int, read: int) -> Callable[[], None]:
    """A step's, on numbers of a step's size."""
    x = {width: numbers(tokens, width + LOW_RANK) for width in (HIDDEN, INNER, 2 * INNER, QKV)}
    shapes = ((QKV, HIDDEN), (HIDDEN, HIDDEN), (2 * INNER, HIDDEN), (HIDDEN, INNER))  # qkv, o, gate and up, down
    weights = [[numbers(out, inputs + LOW_RANK, size=0.02) for out, inputs in shapes] for _ in range(DISTINCT)]
    head, hidden = numbers(VOCABULARY, HIDDEN, size=0.02), numbers(read, HIDDEN)
    of_logits = numbers(AT_ONCE, VOCABULARY, size=0.01)
    results: dict[tuple[int, int], Tensor] = {}

    def product(a: Tensor, b: Tensor) -> None:
        shape = len(a), b.shape[1]
        if shape not in results:
            results[shape] = torch.empty(shape, dtype=a.dtype, device=a.device)
        torch.mm(a, b, out=results[shape])

    def step() -> None:
        for layer in range(LAYERS):
            rows = slice(read) if layer == LAYERS - 1 else slice(None)
            for (_, inputs), weight in zip(shapes, weights[layer % DISTINCT], strict=True):
                product(x[inputs] if weight.shape[0] == QKV else x[inputs][rows], weight.mT)
        for part in hidden.split(AT_ONCE):
            product(part, head.mT)
            product(of_logits[: len(part)], head)
        for layer in reversed(range(LAYERS)):
            rows = slice(read) if layer == LAYERS - 1 else slice(None)
            for (out, inputs), weight in reversed(list(zip(shapes, weights[layer % DISTINCT], strict=True))):
                if out != QKV or layer:
                    product(x[out][:, :out] if out == QKV else x[out][rows, :out], weight[:, :inputs])

    return step


def numbers(*shape: int, size: float = 1.0) -> Tensor:
    return torch.randn(shape, dtype=torch.bfloat16, device="cuda") * size


def timed(step: Callable[[], None], seconds: float, pause_ms: float) -> float:
    """Seconds of a step and its pause, on average."""
    step()
    torch.cuda.synchronize()
    begin, steps = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        step()
        torch.cuda.synchronize()
        time.sleep(pause_ms / 1e3)
        steps += 1
    return (time.perf_counter() - begin) / steps


def state_of_the_card() -> str:
    """Right after the load."""
    command = ["nvidia-smi", "--query-gpu=clocks.sm,power.draw,temperature.gpu", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
