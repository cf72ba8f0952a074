"""Answers a token at a time, the quick way: the training weights in place, and a cache of the keys and values of what was read.

It refuses to know which rows there are and how tokens are chosen (see ltune/generation): it is told where rows lie in the cache.
"""

import logging
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltune.models.fast.attention import attend
from ltune.models.fast.cache import Places, attend_newest, kernel_agrees
from ltune.models.fast.graphs import Graphs, filled_up
from ltune.models.fast.layer import AttentionHalf, Context, Keep
from ltune.models.fast.model import FastModel
from ltune.models.fast.offload import Shelf
from ltune.models.fast.tiles import Rows

SHARE = 0.7  # of the GPU's free memory; the rest is for activations and logits
HELD = 0.5  # of it, which dequantized weights may take
ON_CPU = 2**30  # bytes

log = logging.getLogger(__name__)


def decoder_of(fast: FastModel | None, most_tokens: int | None = None) -> "FastDecoder | None":
    """A decoder for the model; None, with a line in the log if there is a quick way, where transformers' own generate has to do.

    Args:
        fast: The model, where it has a quick way.
        most_tokens: In the cache at once; None: what fits.
    """
    if fast is None:
        return None
    kinds = getattr(fast.decoder.rotary_emb, "rope_type", "default")
    kinds = set(kinds.values()) if isinstance(kinds, dict) else {kinds}
    if odd := sorted(kind for kind in kinds if "dynamic" in kind or kind == "longrope"):
        # all rows would turn with the longest one
        log.info("transformers' own generate is used: rotary embeddings of the kind %s", ", ".join(odd))
        return None
    one = fast.layers[0][0]
    if not kernel_agrees(one.heads, one.key_heads, one.width, fast.dtype, fast.head.weight.device):
        log.info("transformers' own generate is used: the attention kernel does not do here what it is asked to")
        return None
    return FastDecoder(fast, most_tokens)


class FastDecoder:
    """Reads prompts, then a token per row and step.

    Args:
        fast: The model.
        most_tokens: In the cache at once; None: what fits into the free memory.
        graphs: Replay steps as CUDA graphs, on CUDA.
    """

    def __init__(self, fast: FastModel, most_tokens: int | None = None, graphs: bool = True) -> None:
        self.fast = fast
        self.most_tokens = most_tokens
        self.device: torch.device = fast.head.weight.device
        self.with_graphs = graphs and self.device.type == "cuda"
        self.caches: list[Tensor] = []  # of each layer: (tokens, 2 K, D)
        self.held: list[Any] = []  # projections whose weights are dequantized for the while
        self.head: Tensor | None = None  # (V, H)
        self.queries: Tensor | None = None  # 0, 1, ...
        self.graphs: Graphs | None = None
        self.longest = 0

    # -- the cache ------------------------------------------------------------------------------------------------------------------

    def open(self, wanted: int, longest: int, rows: int) -> int:
        """Make a cache of ``wanted`` tokens, or as many as fit, but at least ``longest``; what it came to.

        The trained values are read here: after an optimizer step, open again.

        Args:
            wanted: Tokens.
            longest: No row gets longer.
            rows: No step has more.
        """
        assert not self.caches, "close it first"
        with torch.inference_mode(False), torch.no_grad():  # what may outlive this must serve training too
            self._hold_weights()
            self.fast.refresh()
        with torch.inference_mode():
            self.head = self.fast.head.weight.detach().to(self.fast.dtype)
            tokens = max(longest, min(wanted, self._fitting()))
            self.caches = [
                torch.empty(tokens + 1, 2 * half.key_heads, half.width, dtype=self.fast.dtype, device=self.device)
                for half, _ in self.fast.layers  # one token more, for rows that only fill up a graph's
            ]
            self.queries = torch.arange(rows + 1, dtype=torch.int32, device=self.device)
        self.longest = longest
        if self.with_graphs and self.fast.host_embeddings is None:
            self.graphs = Graphs(lambda values: self._step(values, longest), (0, tokens, 0), rows, self.device)
        return tokens

    def close(self) -> None:
        """Give the memory back."""
        self.caches, self.graphs, self.head, self.queries = [], None, None, None
        for projection in self.held:
            projection.drop_weights()
        self.held = []
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _hold_weights(self) -> None:
        """Weights that the products use as they lie cost nothing; dequantized ones where there is room."""
        quantized = [one for one in self.fast.projections if one.quantized and one.kept is None]
        size = sum(sum(one.sizes) * one.bases[0].in_features for one in quantized) * self.fast.dtype.itemsize
        fits = self.device.type != "cuda" or size <= HELD * self._free()
        self.held = quantized if fits else []
        for projection in self.fast.projections:
            if fits or not projection.quantized:
                projection.keep_weights()

    def _fitting(self) -> int:
        if self.most_tokens is not None:
            return self.most_tokens
        token = sum(2 * half.key_heads * half.width for half, _ in self.fast.layers) * self.fast.dtype.itemsize
        return int(SHARE * self._free() if self.device.type == "cuda" else ON_CPU) // token

    def _free(self) -> int:
        free: int = torch.cuda.mem_get_info(self.device)[0]
        return free + torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)

    # -- reading --------------------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]], starts: Sequence[int]) -> Tensor:
        """Read prompts into the cache; the logits of what follows each, (n, V) float32.

        Args:
            prompts: Ids.
            starts: Where in the cache each begins.
        """
        lengths = [len(prompt) for prompt in prompts]
        place = np.concatenate([np.arange(length) for length in lengths])
        tokens = np.stack([np.concatenate(prompts), place, place + np.repeat(starts, lengths)]).astype(np.int64)
        ids, positions, at = torch.from_numpy(tokens).to(self.device)
        begins = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=self.device)
        rows = Rows(begins, max(lengths))

        def among_rows(half: AttentionHalf, heads: Tensor, cache: Tensor) -> Tensor:
            q, k, v = heads.split([half.heads, half.key_heads, half.key_heads], 1)
            return attend(q, k, v, rows, half.scale, half.window)[0]

        with torch.autocast(self.device.type, enabled=False):
            return self._logits(self._through_layers(ids, positions, at, among_rows)[begins[1:] - 1])

    @torch.inference_mode()
    def step(self, tokens: Sequence[int], starts: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """Read the next token of each row; the logits of what follows, (n, V) float32, good until the next step.

        Args:
            tokens: (n,).
            starts: Where in the cache each row begins.
            lengths: Tokens of each row so far.
        """
        with torch.autocast(self.device.type, enabled=False):
            if self.graphs is not None:
                return self.graphs.run((tokens, starts, lengths))
            return self._step(filled_up((tokens, starts, lengths), (0, 0, 0), len(tokens)).to(self.device), max(lengths) + 1)

    def _step(self, rows: Tensor, longest: int) -> Tensor:
        """Of tokens, starts and lengths, (3, n)."""
        assert self.queries is not None, "open it first"
        tokens, starts, lengths = rows
        places = Places.of(starts, lengths, self.queries, longest)

        def newest(half: AttentionHalf, heads: Tensor, cache: Tensor) -> Tensor:
            return attend_newest(heads[:, : half.heads], cache, places, half.scale, half.window)

        return self._logits(self._through_layers(tokens, lengths, starts + lengths, newest))

    def _through_layers(
        self, ids: Tensor, positions: Tensor, at: Tensor, attention: Callable[[AttentionHalf, Tensor, Tensor], Tensor]
    ) -> Tensor:
        """What the last norm reads, (T, H); keys and values are written at ``at`` on the way."""
        x = self.fast._embedded(ids).to(self.fast.dtype)
        context = Context(_NO_ROWS, self.fast._rotary(x, positions), Keep.NOTHING, Shelf())
        for cache, (half, feed_forward) in zip(self.caches, self.fast.layers, strict=True):
            heads = half.inner(x, context)["qkv"].view(len(x), -1, half.width)
            cache.index_copy_(0, at, heads[:, half.heads :])
            o = attention(half, heads, cache).reshape(len(x), -1)
            if half.after is None:
                x = half.out.forward(o, half.out.weight(), add=x)[0]
            else:
                x = x + half.after.forward(half.out.forward(o, half.out.weight())[0])[0]
            x = feed_forward.forward(x, (feed_forward.gate_up.weight(), feed_forward.down.weight()))[0]
        return x

    def _logits(self, x: Tensor) -> Tensor:
        assert self.head is not None, "open it first"
        hidden = self.fast.norm.forward(x)[0]
        if hidden.is_cuda and hidden.dtype is not torch.float32:
            return torch.mm(hidden, self.head.mT, out_dtype=torch.float32)  # rounded, the likeliest tokens would often tie
        return (hidden @ self.head.mT).float()


_NO_ROWS = Rows(torch.zeros(1, dtype=torch.int32), 0)  # the halves' first part asks for none
