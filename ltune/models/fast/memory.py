"""What a step needs in memory under each setting.

All figures are bytes of the GPU's memory, computed from shapes: nothing is run. They follow what is alive at the fullest moments of a
step: at the head, in the last layer's backward, where layers begin that compute activations again, and in the first layer's.
"""

from dataclasses import dataclass, replace

from ltune.models.fast import flash_attention
from ltune.models.fast.cudnn_attention import by_cudnn
from ltune.models.fast.layer import Keep
from ltune.models.fast.loss import BYTES
from ltune.models.fast.room import ROOM
from ltune.models.fast.shape import Shape as Shape
from ltune.models.fast.training_graphs import SHORT

LIBRARIES = 2**25  # what cuBLAS takes for itself through torch


@dataclass(frozen=True)
class Setting:
    """How a step trades memory for speed."""

    tokens: int  # most tokens of a micro-batch
    keep: Keep = Keep.ALL
    cached: bool = True  # dequantized weights are held
    offload: bool = False  # layers' inputs wait in the host's memory, and the input embeddings stay there
    chunk: int | None = None  # tokens that a feed-forward layer takes at once, where it does not keep everything
    head_chunk: int | None = None  # positions whose logits are computed at once
    kept_layers: int = 0  # of the last layers, so many keep everything whatever ``keep`` says

    def __str__(self) -> str:
        said = [f"micro-batches of up to {self.tokens} tokens"]
        said += ["dequantized weights held"] if self.cached else []
        but = f", but not in the last {self.kept_layers} of the layers" if self.kept_layers else ""
        said += ["activations kept" if self.keep is Keep.ALL else f"activations computed again{but}"]
        return ", ".join(said + (["inputs kept in the host's memory"] if self.offload else []))


@dataclass(frozen=True)
class Need:
    """Bytes at a moment of a step, beside the model and its adapter as they were loaded."""

    held: int  # weights for the products, less what left for the host
    optimizer: int
    gradients: int
    activations: int  # kept from forward to backward
    work: int  # logits, or what a layer's backward has alive

    @property
    def total(self) -> int:
        """All of it."""
        return self.held + self.optimizer + self.gradients + self.activations + self.work


# -- a micro-batch ----------------------------------------------------------------------------------------------------------------------


def activations(shape: Shape, setting: Setting, tokens: int) -> int:
    """What is kept from the forward to the backward of a micro-batch."""
    of_kept = setting.kept_layers * of_layer(shape, replace(setting, keep=Keep.ALL), tokens)
    return of_kept + (shape.layers - setting.kept_layers) * of_layer(shape, setting, tokens)


def of_layer(shape: Shape, setting: Setting, tokens: int) -> int:
    """What a layer keeps under ``setting.keep``."""
    row = 0 if setting.offload or (setting.keep is Keep.ALL and shape.invertible) else 2 * shape.hidden
    extra = 0
    if setting.keep is not Keep.NOTHING:
        row += shape.attended
        extra += 4 * shape.heads
    if setting.keep is Keep.ALL:
        row += (4 if shape.after else 2) * shape.hidden + (2 if shape.normed else 1) * shape.qkv + shape.gate_up
        # behind the normalised inputs, q, k and v, attention's output, gate and up
        row += 5 * ROOM if setting.cached and shape.room else 0
        extra += shape.size * shape.ranks + 16 + (4 * shape.qkv * shape.heads // shape.attended if shape.normed else 0)
    return tokens * (row * shape.size + extra)


def of_attention(shape: Shape, setting: Setting, tokens: int, longest: int) -> int:
    """What the backward of attention has alive beside what was kept."""
    gradients = shape.hidden + 2 * shape.attended + (shape.qkv - shape.attended)  # dy, do, dq, dk and dv
    inside = tokens * gradients * shape.size
    if longest >= flash_attention.LONG and flash_attention.installed():  # sums in float32 of dq, and of dk and dv for several heads
        sums = shape.attended + (shape.qkv - shape.attended if shape.qkv != 3 * shape.attended else 0) + 2 * shape.heads
        inside += 4 * (tokens + 128 * (1 + tokens // longest)) * sums
    elif by_cudnn(longest):
        # dk and dv of each query head; and where others are beside it, the row's own gradients, and all its inputs filled up
        row = 2 * shape.attended if shape.qkv != 3 * shape.attended else 0
        row += 2 * (shape.qkv + shape.attended) if tokens > longest else 0
        inside += longest * row * shape.size + 4 * (longest + 128) * shape.attended  # sums of dq, in float32
    outside = (tokens * (gradients + shape.qkv + 2 * shape.hidden) + _dense(shape, setting, shape.qkv * shape.hidden)) * shape.size
    again = 0
    if setting.keep is not Keep.ALL:
        again = shape.hidden + (2 if shape.normed else 1) * shape.qkv + (shape.hidden if shape.after else 0)
        again += shape.attended if setting.keep is Keep.NOTHING else 0
    return max(inside, outside) + tokens * (again + _fetched(shape, setting)) * shape.size


def of_feed_forward(shape: Shape, setting: Setting, tokens: int) -> int:
    """What the backward of a feed-forward layer has alive beside what was kept."""
    chunk = None if setting.keep is Keep.ALL else setting.chunk
    at_once, width = min(tokens, chunk or tokens), shape.gate_up // 2
    inner = max(width, 2 * shape.hidden) + (shape.hidden if shape.after else 0)  # dh, later dn and dx
    if setting.keep is not Keep.ALL:
        inner += shape.hidden + shape.gate_up + (shape.hidden if shape.after else 0)
    outer = shape.hidden * (2 if chunk else 1) + _fetched(shape, setting)  # dy, and the chunks' dx
    products = 4 * shape.gate_up * shape.hidden if shape.whole not in (0, 4) else 0  # dW in float32, before it is rounded
    used = at_once * inner + _dense(shape, setting, 3 * width * shape.hidden)
    making = _dense(shape, setting, 4 * width * shape.hidden)  # gate and up, and both side by side
    return (tokens * outer + max(used, making)) * shape.size + products


def of_backward(shape: Shape, setting: Setting, tokens: int, longest: int | None) -> int:
    """What the backward of a layer has alive beside what was kept, at most."""
    return max(of_attention(shape, setting, tokens, longest or tokens), of_feed_forward(shape, setting, tokens))


def of_head(shape: Shape, setting: Setting, tokens: int, trained_tokens: int) -> int:
    """What the head and its loss have alive."""
    whole = shape.vocabulary * shape.size
    at_once = min(trained_tokens, setting.head_chunk or max(128, BYTES // whole // 128 * 128))
    rows = 3 * trained_tokens + at_once  # what goes into the last norm, comes out of it, its gradient, and a part of that
    weight = shape.vocabulary * shape.hidden
    # dW in float32, the part that is added to it, and the rounded one
    gradient = weight * 8 + (shape.head if shape.head != weight * 4 else 0) if shape.head else 0
    return (tokens + rows) * shape.hidden * shape.size + at_once * whole + gradient + (weight * shape.size if shape.head_copied else 0)


def _dense(shape: Shape, setting: Setting, weights: int) -> int:
    return weights if shape.quantized and not setting.cached else 0


def _fetched(shape: Shape, setting: Setting) -> int:
    """An input that came back from the host, and the next one."""
    return 2 * shape.hidden if setting.offload else 0


# -- a step -----------------------------------------------------------------------------------------------------------------------------


def need(
    shape: Shape, setting: Setting, tokens: int, trained_tokens: int, longest: int | None = None, several: bool = False, sizes: int = 1
) -> Need:
    """At the fullest moment of a step.

    Args:
        shape: Of the model.
        setting: Of the step.
        tokens: Of the largest micro-batch.
        trained_tokens: Those of them that are predicted.
        longest: Tokens of its longest row; None: it is a single one.
        several: Whether the step has more micro-batches, so that there are gradients when the next one begins.
        sizes: How many sizes of micro-batches are captured in CUDA graphs.
    """
    held = (shape.copied + (shape.quantized + shape.room if setting.cached else 0)) * shape.layers * shape.size + LIBRARIES
    held -= shape.movable if setting.offload else 0
    graphed = setting.keep is Keep.ALL and tokens <= SHORT and not shape.embedding
    if graphed:  # all graphs write the gradients to one place, and each size's its output and that one's gradient to its own
        held += shape.produced + sizes * 2 * tokens * shape.hidden * shape.size
    optimizer = int(shape.moments * shape.trained_in_all)
    last = replace(setting, keep=Keep.ALL) if setting.kept_layers else setting
    kept, of_last, of_others = activations(shape, setting, tokens), of_layer(shape, last, tokens), of_layer(shape, setting, tokens)
    head = of_head(shape, setting, tokens, trained_tokens)
    before = shape.trained_in_all if several else 0
    of_the_head = shape.head if shape.tied or not several else 0
    done = shape.produced * setting.kept_layers // shape.layers
    in_last, in_others = (of_backward(shape, one, tokens, longest) for one in (last, setting))
    moments = [
        Need(held, optimizer, before, kept, head),
        Need(held, optimizer, before + of_the_head, kept, in_last),
        # where layers begin that compute again, and where all layers' gradients are there
        Need(held, optimizer, before + of_the_head + done, kept - setting.kept_layers * of_last, in_others),
        Need(held, optimizer, before + of_the_head + shape.produced, of_others, in_others),
        Need(held, optimizer, before + of_the_head + shape.produced + shape.embedding, 0, shape.embedding if several or shape.tied else 0),
    ]
    return max(moments, key=lambda moment: moment.total)


def needed(shape: Shape, setting: Setting, trained_share: float = 1.0, window: int = 0, longest: int | None = None) -> int:
    """Beside the model and its adapter as they were loaded, for micro-batches as large as the setting allows."""
    tokens = setting.tokens
    return need(shape, setting, tokens, int(tokens * trained_share), longest, several=window > tokens).total


def on_host(shape: Shape, setting: Setting) -> int:
    """Bytes that wait in the host's memory: inputs of a micro-batch's layers, and the embeddings."""
    if not setting.offload:
        return 0
    layers = shape.layers - (setting.kept_layers if shape.invertible else 0)
    return 2 * setting.tokens * layers * shape.hidden * shape.size + shape.movable
