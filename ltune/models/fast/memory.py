"""What a step needs in memory under each setting, and the quickest setting that fits.

All figures are bytes of the GPU's memory, computed from shapes: nothing is run.
"""

from dataclasses import dataclass, replace

from ltune.models.fast.layer import AttentionHalf, FeedForwardHalf, Keep
from ltune.models.fast.loss import BYTES

USABLE = 0.93  # of the free memory; the rest goes to fragments
# Of an H200; only their proportions matter, to compare settings with each other
PRODUCTS = 7e14  # operations a second
DEQUANTIZING = 2.5e12  # bytes a second
LAUNCHING = 2e-3  # seconds a layer, forward and backward: no micro-batch is quicker, however small


@dataclass(frozen=True)
class Setting:
    """How a step trades memory for speed."""

    tokens: int  # most tokens of a micro-batch
    keep: Keep = Keep.ALL
    cached: bool = True  # dequantized weights are held
    offload: bool = False  # layers' inputs wait in the host's memory, and the input embeddings stay there
    chunk: int | None = None  # tokens that a feed-forward layer takes at once
    head_chunk: int | None = None  # positions whose logits are computed at once

    def __str__(self) -> str:
        said = [f"micro-batches of up to {self.tokens} tokens"]
        said += ["dequantized weights held"] if self.cached else []
        said += [{Keep.ALL: "activations kept", Keep.ATTENTION: "activations computed again", Keep.NOTHING: "activations computed again"}[self.keep]]
        return ", ".join(said + (["inputs kept in the host's memory"] if self.offload else []))


@dataclass(frozen=True)
class Shape:
    """Sizes of a model, per layer and in all; enough to estimate without its weights."""

    layers: int
    hidden: int
    qkv: int  # outputs
    attended: int  # inputs of the output projection
    heads: int
    gate_up: int  # outputs
    ranks: int  # of all low-rank parts of a layer
    vocabulary: int
    normed: bool  # queries and keys are
    quantized: int  # weights of a layer stored in fewer bits
    copied: int  # weights of a layer that are trained in another dtype, so that the products use a copy
    weights: int  # of a layer
    trained: int  # parameters, in all
    size: int  # bytes of an activation

    @classmethod
    def of(cls, layers: list[tuple[AttentionHalf, FeedForwardHalf]], vocabulary: int, trained: int) -> "Shape":
        """Of a model that was read."""
        attention, feed = layers[0]
        parts = (attention.qkv, attention.out, feed.gate_up, feed.down)
        sizes = [sum(one.sizes) * one.bases[0].in_features for one in parts]
        return cls(
            layers=len(layers),
            hidden=feed.gate_up.bases[0].in_features,
            qkv=sum(attention.qkv.sizes),
            attended=attention.out.bases[0].in_features,
            heads=attention.heads,
            gate_up=sum(feed.gate_up.sizes),
            ranks=sum(one.low.a.shape[0] for one in parts),
            vocabulary=vocabulary,
            normed=attention.q_norm is not None,
            quantized=sum(size for one, size in zip(parts, sizes, strict=True) if one.quantized),
            copied=sum(size for one, size in zip(parts, sizes, strict=True) if not one.quantized and one.bases[0].weight.dtype is not one.dtype),
            weights=sum(sizes),
            trained=trained,
            size=feed.gate_up.dtype.itemsize,
        )


def activations(shape: Shape, setting: Setting, tokens: int) -> int:
    """What is kept from the forward to the backward of a micro-batch."""
    if setting.keep is Keep.NOTHING:
        row = 0 if setting.offload else 2 * shape.hidden
        return tokens * shape.layers * row * shape.size
    row = 2 * shape.hidden + shape.attended
    extra = 4 * shape.heads + shape.size * shape.ranks + 16
    if setting.keep is Keep.ALL:
        row += 2 * shape.hidden + (2 if shape.normed else 1) * shape.qkv + shape.gate_up
    return tokens * shape.layers * (row * shape.size + extra)


def transient(shape: Shape, setting: Setting, tokens: int, trained_tokens: int) -> int:
    """The most that one layer, or the head, needs beside what is kept."""
    at_once = min(tokens, setting.chunk or tokens)
    feed = at_once * (shape.gate_up * (1.5 if setting.keep is not Keep.ALL else 0.5) + 2 * shape.hidden) + tokens * 4 * shape.hidden
    attention = tokens * (2 * shape.qkv * (2 if setting.keep is not Keep.ALL else 1) + 2 * shape.attended + 3 * shape.hidden)
    held = 0 if setting.cached else 1.5 * shape.gate_up * shape.hidden
    layer = (max(feed + held, attention + 0.5 * held)) * shape.size
    logits = BYTES if setting.head_chunk is None else setting.head_chunk * shape.vocabulary * shape.size
    head = trained_tokens * shape.hidden * 3 * shape.size + min(logits, trained_tokens * shape.vocabulary * shape.size)
    return int(max(layer, head + 2 * tokens * shape.hidden * shape.size))


def lasting(shape: Shape, setting: Setting) -> int:
    """What the setting adds for the whole run: held weights, gradients, and the two moments of the optimizer."""
    held = (shape.copied + (shape.quantized if setting.cached else 0)) * shape.layers * shape.size
    return held + 12 * shape.trained


def needed(shape: Shape, setting: Setting, trained_share: float = 1.0) -> int:
    """Beside the model and its adapter as they were loaded."""
    tokens = setting.tokens
    return lasting(shape, setting) + activations(shape, setting, tokens) + transient(shape, setting, tokens, int(tokens * trained_share))


def seconds(shape: Shape, setting: Setting, window: int) -> float:
    """About how long a step of ``window`` tokens takes, to compare settings."""
    again = 0 if setting.keep is Keep.ALL else 1
    micro_batches = -(-window // setting.tokens)
    products = (4 + 2 * again) * shape.weights * shape.layers * (window / micro_batches) / PRODUCTS
    dequantizing = 0 if setting.cached else (2 + again) * 2.5 * shape.quantized * shape.layers / DEQUANTIZING
    return micro_batches * (max(products, LAUNCHING * shape.layers) + dequantizing)


def choose(shape: Shape, free: int, window: int, longest: int, *, cached: bool = True, again: bool = False) -> Setting:
    """The quickest setting that fits; the least one where none does.

    Args:
        shape: Of the model.
        free: Bytes.
        window: Tokens of the largest step on this device.
        longest: Tokens of the longest row: no micro-batch can be smaller.
        cached: Whether dequantized weights may be held.
        again: Whether activations must be computed again, as ``gradient_checkpointing: true`` asks.
    """
    sizes = {max(longest, -(-window // parts)) for parts in (1, 2, 4, 8, 16, 32, 64)}
    levels = [Keep.ATTENTION] if again else [Keep.ALL, Keep.ATTENTION]
    settings = [Setting(size, keep, held) for size in sizes for keep in levels for held in {cached and shape.quantized > 0, False}]
    fitting = [setting for setting in settings if needed(shape, setting) <= USABLE * free]
    if not fitting:
        return least(longest)
    return min(fitting, key=lambda setting: (seconds(shape, setting, window), needed(shape, setting)))


def least(tokens: int) -> Setting:
    """The setting that needs the least memory."""
    return Setting(tokens, Keep.NOTHING, cached=False, offload=True, chunk=2048, head_chunk=512)


def smaller(setting: Setting, largest: int) -> Setting | None:
    """What to try after running out of memory; None where nothing is left to give up.

    Args:
        setting: Under which it happened.
        largest: Tokens of the largest micro-batch in it that has more than one row; 0 if none has.
    """
    if setting.cached:
        return replace(setting, cached=False)
    if largest > 0:
        return replace(setting, tokens=max(1, min(setting.tokens, largest) // 2))
    if setting.keep is Keep.ALL:
        return replace(setting, keep=Keep.ATTENTION)
    return least(setting.tokens) if not setting.offload else None
