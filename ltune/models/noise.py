"""NEFTune: noise on the embedded tokens in training (https://arxiv.org/abs/2310.05914).

    x_t + alpha / sqrt(L H) u_t,   u_t uniform in (-1, 1)^H,   L: tokens of t's row,   H: width

The noise is drawn for the tokens end to end, without padding, so that both layouts draw the same; and from torch's generator, which
``seed_step`` has set to the place in training, so that a resumed run draws the same. L is the row's own length: transformers takes the
longest row's in the batch, padding too, and the noise on a row would depend on the rows beside it.
"""

import torch
from torch import Tensor


def embedding_noise(starts: Tensor, tokens: int, width: int, alpha: float) -> Tensor:
    """(T, H) float32: the noise on rows that lie end to end.

    Args:
        starts: (rows + 1,): where each row begins, and T.
        tokens: T.
        width: H.
        alpha: Strength; the paper's are 5 to 15.
    """
    lengths = starts.diff().long()  # (rows,)
    size = alpha * (lengths * width).to(torch.float32).rsqrt()
    each = size.repeat_interleave(lengths, output_size=tokens)  # (T,): given, so that the host need not wait for the device
    return (2 * torch.rand(tokens, width, device=starts.device) - 1) * each[:, None]


def with_noise(embedded: Tensor, starts: Tensor, mask: Tensor | None, alpha: float) -> Tensor:
    """The embedded tokens with noise, in their dtype; padding has none.

    Args:
        embedded: (1, T, H) or (T, H) with rows end to end; (B, L, H) padded.
        starts: (rows + 1,): where each row would begin, end to end.
        mask: (B, L): 1 on tokens, 0 on padding; None where rows lie end to end.
        alpha: Strength.
    """
    width = embedded.shape[-1]
    if mask is None:
        tokens = embedded.numel() // width
        return embedded + embedding_noise(starts, tokens, width, alpha).view_as(embedded).to(embedded.dtype)
    at = mask.flatten().nonzero()[:, 0]  # (T,)
    noise = embedding_noise(starts, len(at), width, alpha).to(embedded.dtype)
    return embedded + torch.zeros_like(embedded).flatten(0, 1).index_copy(0, at, noise).view_as(embedded)
