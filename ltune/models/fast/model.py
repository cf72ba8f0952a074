"""A causal model the quick way: embeddings, layers, norm, head."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ltune.models.fast.cudnn_attention import long_alone
from ltune.models.fast.dropout import Draw
from ltune.models.fast.filled import lengthened
from ltune.models.fast.layer import AttentionHalf, Context, FeedForwardHalf, Keep, Norm
from ltune.models.fast.loss import HeadLoss
from ltune.models.fast.lowrank import Copy, LowRank, frozen_low_rank, refresh, share_storage
from ltune.models.fast.memory import Setting, Shape
from ltune.models.fast.offload import HostShelf, Shelf
from ltune.models.fast.projection import Gradients, Projection
from ltune.models.fast.read import Unsuited, read_layers, read_norm
from ltune.models.fast.rotary import Turn
from ltune.models.fast.stack import Chosen, GraphedStep, Kept, LayersStep, NormStep, run, run_backward
from ltune.models.fast.tiles import Rows
from ltune.models.fast.training_graphs import BUCKET, SHORT, STEP, Size, TrainingGraphs, padded, rows_of


class FastModel:
    """Computes with a transformers model's own weights.

    Args:
        causal: The causal model, its adapter on and its weights on their device.
        dtype: Of the products.

    Raises:
        Unsuited: What the model has that is not served here.
    """

    def __init__(self, causal: Any, dtype: torch.dtype) -> None:
        self.decoder: Any = causal.model if hasattr(causal, "model") else None
        self.head = causal.get_output_embeddings()
        if self.decoder is None or type(self.head) is not torch.nn.Linear or self.head.bias is not None:
            raise Unsuited(f"{type(causal).__name__} has no plain head over a decoder")
        if option := scaling_of_logits(causal):
            raise Unsuited(f"{option} in its configuration")
        self.dtype: torch.dtype = dtype
        self.layers: list[tuple[AttentionHalf, FeedForwardHalf]] = read_layers(self.decoder, dtype)
        self.norm: Norm = read_norm(self.decoder.norm)
        self.copies: list[Copy] = share_storage(self.projections, dtype)
        for number, projection in enumerate(self.projections):
            projection.number = number
        self.drops: bool = any(projection.dropout for projection in self.projections)
        self.parameters: list[torch.nn.Parameter] = [p for a, f in self.layers for half in (a, f) for p in half.parameters()]
        self.kinds: list[str] = sorted({attention.kind for attention, _ in self.layers})
        self.keep: Keep = Keep.ALL
        self.kept_layers: int = 0
        self.chunk: int | None = None
        self.head_chunk: int | None = None
        self.shelf: Shelf = Shelf()
        self.graphs: TrainingGraphs | None = None
        self.host_embeddings: Tensor | None = None  # (V, H), pinned
        self.change: Callable[[Tensor], Tensor] | None = None  # of the embedded tokens
        self._versions: int = -1
        self._others: dict[str, list[LowRank]] = {}  # by adapter, of each projection

    def adopt(self, setting: Setting) -> None:
        """Trade memory for speed as the setting says."""
        self.keep, self.kept_layers = setting.keep, setting.kept_layers
        self.chunk, self.head_chunk = setting.chunk, setting.head_chunk
        self._place_low_rank(joined=setting.cached)
        for projection in self.projections:
            if setting.cached or not projection.quantized:
                projection.keep_weights()
            else:
                projection.drop_weights()
        if self.graphs is not None:
            self.graphs.clear()
        # Trained weights of the embeddings would need a gradient that no graph gives; a copy to the host cannot be captured
        graphed = self.head.weight.is_cuda and setting.keep is Keep.ALL and not self.decoder.embed_tokens.weight.requires_grad
        self.graphs = TrainingGraphs(self._graph_forward, self._graph_backward) if graphed else None
        if not setting.offload:
            return
        embeddings = self.decoder.embed_tokens
        self.shelf = HostShelf(embeddings.weight.device)
        plain = type(embeddings) is torch.nn.Embedding and not embeddings.weight.requires_grad
        if plain and embeddings.weight is not self.head.weight and self.host_embeddings is None:
            self.host_embeddings = embeddings.weight.detach().cpu().pin_memory()
            embeddings.weight.data = embeddings.weight.new_empty(0, embeddings.weight.shape[1])  # a part of it would keep the whole

    def _place_low_rank(self, joined: bool) -> None:
        if joined == any(projection.joined for projection in self.projections):
            return
        for projection in self.projections:
            projection.drop_weights()
        self.copies, self._versions = share_storage(self.projections, self.dtype, joined), -1

    def shape(self) -> Shape:
        """Its sizes, for what it will need."""
        trained = sum(parameter.numel() for parameter in self.parameters)
        return Shape.of(self.layers, self.head.out_features, trained, self.head.weight, self.decoder.embed_tokens.weight)

    @property
    def projections(self) -> list[Projection]:
        """All of them, in order."""
        return [one for a, f in self.layers for one in (a.qkv, a.out, f.gate_up, f.down)]

    @property
    def lends(self) -> bool:
        """Whether rows may see another's tokens before their own; those that are dropped or changed are a row's own."""
        return self.change is None and not self._dropping

    @property
    def _dropping(self) -> bool:
        """Whether numbers are dropped now, as in training."""
        return self.drops and self.decoder.training

    def token_losses(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        rows: Rows,
        predict_at: Tensor,
        targets: Tensor,
        smoothing: float = 0.0,
        temperature: float = 1.0,
    ) -> Tensor:
        """The cross-entropy at each trained position, (N,) float32.

        Args:
            input_ids: (T,): rows end to end.
            position_ids: (T,): restarting with each row, or going on from the tokens that it borrows.
            rows: Where they lie.
            predict_at: (N,): the positions before trained tokens.
            targets: (N,): the trained tokens.
            smoothing: Share of each target that is spread over all tokens.
            temperature: That logits are divided by.
        """
        with torch.autocast(input_ids.device.type, enabled=False):
            hidden = self.hidden(input_ids, position_ids, rows, predict_at)
            return self.losses_from(hidden, targets, smoothing, temperature)

    def hidden(self, input_ids: Tensor, position_ids: Tensor, rows: Rows, at: Tensor) -> Tensor:
        """What the head reads at the positions ``at``, (N,): (N, H)."""
        with torch.autocast(input_ids.device.type, enabled=False):
            if not len(at):  # a rank without rows in a short window
                return self.layers_output(input_ids, position_ids, rows)[:0]
            return NormStep.apply(self.layers_output(input_ids, position_ids, rows, at), self.norm.weight, self.norm)

    def losses_from(self, hidden: Tensor, targets: Tensor, smoothing: float = 0.0, temperature: float = 1.0) -> Tensor:
        """The cross-entropy of the targets (N,) under the head's reading of (N, H): (N,) float32."""
        if not len(targets):
            return hidden.float().sum(-1)
        hidden = hidden if temperature == 1 else hidden / temperature  # the head has no bias
        return HeadLoss.apply(hidden, self.head.weight, targets, self.head_chunk, torch.is_grad_enabled(), smoothing)

    def logits_from(self, hidden: Tensor) -> Tensor:
        """(N, V) of (N, H)."""
        with torch.autocast(hidden.device.type, enabled=False):
            return hidden @ self.head.weight.to(hidden.dtype).mT

    @contextmanager
    def embedding(self, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Within it embedded tokens (T, H) are changed so; no step is replayed from CUDA graphs."""
        self.change = change
        try:
            yield
        finally:
            self.change = None

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """The model as it would be without its low-rank parts, for passes without gradient."""
        parts = [projection.low for projection in self.projections]
        for part in parts:
            part.left_out = True
        try:
            yield
        finally:
            for part in parts:
                part.left_out = False

    @contextmanager
    def with_adapter(self, name: str) -> Iterator[None]:
        """The model with another adapter's low-rank parts, which do not change, for passes without gradient."""
        if name not in self._others:
            self._others[name] = [frozen_low_rank(projection, name, self.dtype) for projection in self.projections]
        projections = self.projections
        trained = [projection.low for projection in projections]
        try:
            for projection, low in zip(projections, self._others[name], strict=True):
                projection.low = low
            yield
        finally:
            for projection, low in zip(projections, trained, strict=True):
                projection.low = low

    def layers_output(self, input_ids: Tensor, position_ids: Tensor, rows: Rows, at: Tensor | None = None) -> Tensor:
        """What the last norm reads, (T, H), or at the places ``at`` only, (N, H)."""
        training = torch.is_grad_enabled()
        self.refresh()
        draw = Draw(torch.randint(2**62, (1,), device=input_ids.device)) if self._dropping else None
        graphs = self.graphs if training and self.change is None and len(input_ids) <= SHORT and self._dropping == self.drops else None
        if self.change is not None:
            return self._layers(input_ids, position_ids, rows, training, at, draw)
        count = len(input_ids) if at is None else len(at)
        if graphs is None and long_alone(rows):
            return self._layers(*lengthened(input_ids, position_ids), training, at, draw)[:count]
        size, inputs = padded(input_ids, position_ids, rows, BUCKET if graphs else STEP)
        filled = inputs["input_ids"], inputs["position_ids"], rows_of(size, inputs, None if graphs else rows), training
        if graphs is None:
            return self._layers(*filled, at, draw)[:count]
        inputs |= {"seed": draw.seed} if draw else {}
        if graphs.ready(size, inputs):
            x = GraphedStep.apply(graphs, size, inputs, len(input_ids), *self.parameters)
        else:
            x = self._layers(*filled, None, draw)[: len(input_ids)]
        return x if at is None else Chosen.apply(x, at)

    def _layers(self, input_ids: Tensor, position_ids: Tensor, rows: Rows, training: bool, at: Tensor | None, draw: Draw | None) -> Tensor:
        x, context = self._entered(input_ids, position_ids, rows, training, draw)
        return LayersStep.apply(x, self.layers, context, at, training, *self.parameters)

    def _entered(self, input_ids: Tensor, position_ids: Tensor, rows: Rows, training: bool, draw: Draw | None) -> tuple[Tensor, Context]:
        """The embedded tokens (T, H), and what the layers share."""
        x = self._embedded(input_ids).to(self.dtype)
        rotary, shelf = self._rotary(x, position_ids), self.shelf if training else Shelf()
        return x, Context(rows, rotary, self.keep, shelf, self.chunk, self.kept_layers, draw)

    def _graph_forward(self, size: Size, inputs: dict[str, Tensor]) -> tuple[Tensor, tuple[Context, Kept]]:
        draw = Draw(inputs["seed"]) if "seed" in inputs else None
        x, context = self._entered(inputs["input_ids"], inputs["position_ids"], rows_of(size, inputs), True, draw)
        kept: Kept = []
        return run(x, self.layers, context, kept), (context, kept)

    def _graph_backward(self, dy: Tensor, saved: tuple[Context, Kept]) -> Gradients:
        context, kept = saved
        return run_backward(dy, self.layers, context, kept, need_dx=False)[1]

    def _embedded(self, input_ids: Tensor) -> Tensor:
        if self.host_embeddings is None:
            embedded = self.decoder.embed_tokens(input_ids)
        else:
            embedded = self.host_embeddings[input_ids.cpu()].to(input_ids.device)
        return embedded if self.change is None else self.change(embedded)

    def _rotary(self, x: Tensor, position_ids: Tensor) -> dict[str, Turn]:
        found = {}
        for kind in self.kinds:
            arguments = (x[None], position_ids[None], *([kind] if kind and _by_kind(self.decoder.rotary_emb) else []))
            cos, sin = self.decoder.rotary_emb(*arguments)  # (1, T, R), both halves alike
            half = cos.shape[-1] // 2
            found[kind] = Turn(cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous())
        return found

    def refresh(self) -> None:
        """The products' copies of what is trained, if that has changed since; a forward does so too. Right after an optimizer step it costs
        nothing: the device is still at that."""
        copied = [(view, master) for one in self.projections for view, master in zip(one.working, one.masters, strict=True)]
        masters = [master for copy in self.copies for master in copy.masters] + [master for _, master in copied]
        versions = sum(master._version for master in masters)
        if versions == self._versions:
            return
        with torch.no_grad():
            refresh(self.copies)
            if copied:
                torch._foreach_copy_([view for view, _ in copied], [master.detach() for _, master in copied])
        self._versions = versions


def scaling_of_logits(causal: Any) -> str | None:
    """The option by which a model's logits are more than the head's product; None where there is none."""
    config = causal.config.get_text_config()
    options = ("final_logit_softcapping", "logit_scale", "logits_scaling")
    return next((option for option in options if getattr(config, option, None) not in (None, 1, 1.0)), None)


def _by_kind(rotary: Any) -> bool:
    """Whether the model has a rotary embedding for each kind of layer."""
    return hasattr(rotary, "layer_types")
