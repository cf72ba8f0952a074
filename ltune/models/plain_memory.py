"""What a step needs in memory where transformers' own layers compute. Rougher than the quick way's: their autograd decides what is kept."""

from dataclasses import dataclass
from typing import Any

from ltune.models.attention import head_width
from ltune.models.fast.memory import LIBRARIES, Need


@dataclass(frozen=True)
class PlainShape:
    """Sizes of a model, from its configuration."""

    layers: int
    hidden: int
    qkv: int  # outputs
    attended: int  # inputs of the output projection
    inner: int  # values between a feed-forward layer's two products, for a token: of all experts that it goes to
    vocabulary: int
    size: int  # bytes of an activation
    trained: int  # bytes
    copied: int  # bytes of weights that autocast rounds for the products
    largest: int  # weights of the largest quantized layer
    adapted: bool  # by LoRA
    dropout: bool  # in LoRA: and a mask of that
    by_rows: bool  # rows are attended at once, each by itself: no mask, and keys are not repeated
    moments: float = 2.0  # bytes that the optimizer keeps for a byte that is trained

    @property
    def own_inputs(self) -> bool:
        """Whether each of LoRA's layers keeps an input of its own: what was dropped, or what PEFT converts to the adapter's dtype and
        autocast back; beside bitsandbytes' layers on a GPU it does not."""
        return self.adapted and (self.dropout or not self.largest)

    @classmethod
    def of(cls, config: Any, **sizes: Any) -> "PlainShape":
        """Of a text model's configuration; ``sizes`` are what it does not tell."""
        width = head_width(config)
        keys = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            qkv=(config.num_attention_heads + 2 * keys) * width,
            attended=config.num_attention_heads * width,
            inner=_inner(config),
            vocabulary=config.vocab_size,
            **sizes,
        )


def _inner(config: Any) -> int:
    dense = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size
    experts = getattr(config, "num_experts_per_tok", None)
    if not experts:
        return dense
    one = getattr(config, "moe_intermediate_size", None) or dense
    shared = getattr(config, "shared_expert_intermediate_size", None) or one * (getattr(config, "n_shared_experts", None) or 0)
    return experts * one + shared


def of_layer(shape: PlainShape, tokens: int) -> int:
    """What autograd keeps: the norms' inputs in float32 and their outputs; q, k, v; what is attended; gate, up and their product. With a
    mask what is attended is copied, and where keys are fewer than queries, these and the values are repeated."""
    repeated = 2 * shape.attended if shape.qkv < 3 * shape.attended and not shape.by_rows else 0
    attended = shape.attended * (1 if shape.by_rows and not shape.own_inputs else 2)
    row = shape.size * (2 * shape.hidden + shape.qkv + repeated + attended + 4 * shape.inner) + 8 * shape.hidden
    if shape.own_inputs:
        row += 3 * shape.size * shape.hidden
    if shape.dropout:
        row += 5 * shape.hidden + shape.attended + shape.inner
    return tokens * row


def plain_need(shape: PlainShape, tokens: int, trained_tokens: int, *, padded: bool, again: bool, several: bool) -> Need:
    """At the fullest moment of a step.

    Args:
        shape: Of the model.
        tokens: Of the largest micro-batch, padding included.
        trained_tokens: Those of them that are predicted.
        padded: Whether rows are padded: then the head computes every position.
        again: Whether activations are computed again in the backward pass.
        several: Whether the step has more micro-batches.
    """
    layer = of_layer(shape, tokens)
    inputs = tokens * shape.hidden * shape.size
    kept = shape.layers * (inputs if again else layer)
    # As the head gives them, in float32, their log-probabilities, the gradient, and that as the head wants it
    logits = shape.vocabulary * ((tokens if padded else trained_tokens) * shape.size + trained_tokens * (12 + shape.size))
    mask = 0 if padded or shape.by_rows else tokens * tokens * shape.size
    inside = 3 * inputs + 2 * shape.largest * shape.size + (layer if again else 0) + mask
    held, optimizer = shape.copied + LIBRARIES, int(shape.moments * shape.trained)
    before = shape.trained if several else 0
    moments = [
        Need(held, optimizer, before, kept, max(logits, inside)),
        Need(held, optimizer, shape.trained, kept // shape.layers, inside + (shape.trained // shape.layers if several else 0)),
    ]
    return max(moments, key=lambda moment: moment.total)
