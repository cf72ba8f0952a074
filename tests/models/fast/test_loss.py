"""The head's loss in parts is torch's cross-entropy of the whole logits, smoothed or not: losses, and gradients of states and head."""

import pytest
import torch
from torch.nn import functional

from ltune.models.fast.loss import HeadLoss


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("trained_head", [False, True])
def test_the_loss_is_torchs(smoothing, trained_head):
    torch.manual_seed(0)
    hidden, weight = torch.randn(11, 8, requires_grad=True), torch.randn(50, 8, requires_grad=trained_head)
    targets, upstream = torch.randint(50, (11,)), torch.linspace(0.2, 2.0, 11)
    expected = functional.cross_entropy(hidden @ weight.mT, targets, reduction="none", label_smoothing=smoothing)
    losses = HeadLoss.apply(hidden, weight, targets, 4, True, smoothing)
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-5)
    wanted = [hidden, weight] if trained_head else [hidden]
    ours, theirs = (torch.autograd.grad(both, wanted, upstream) for both in (losses, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
