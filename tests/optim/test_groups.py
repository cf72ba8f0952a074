"""LoRA+ raises B and one-dimensional weights; those of one dimension never decay."""

import pytest
import torch

from ltune.optim.groups import build_optimizer, fuse, is_fused


def named():
    shapes = {"q.lora_A.default.weight": (2, 4), "q.lora_B.default.weight": (4, 2), "q.bias": (4,)}
    return [(name, torch.nn.Parameter(torch.zeros(shape))) for name, shape in shapes.items()]


def adamw(groups):
    return torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1)


def test_lora_plus_raises_b_and_vectors():
    optimizer = build_optimizer(named(), adamw, 16.0)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 1.6e-2, 1.6e-2]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 0.0]
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1, 1]


def test_without_lora_plus_all_learn_alike_and_empty_groups_are_left_out():
    optimizer = build_optimizer(named()[:1], adamw, None)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3]


def test_adam_is_fused_unless_its_options_say_otherwise():
    weight = torch.nn.Parameter(torch.zeros(2))
    for options, fused in (({}, True), ({"foreach": True}, False), ({"fused": False}, False), ({"foreach": False}, True)):
        optimizer = torch.optim.AdamW([weight], **options)
        fuse(optimizer)
        assert is_fused(optimizer) is fused, options
    strided = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2, 3).T)])
    fuse(strided)
    assert not is_fused(strided)
    other = torch.optim.SGD([weight], lr=0.1, fused=True)
    fuse(other)
    assert not is_fused(other)


def test_a_fused_step_is_the_plain_one_to_rounding_however_gradients_come_about():
    torch.manual_seed(0)
    start, factor = torch.randn(4, 6), torch.randn(6, 4)
    found = []
    for fused in (False, True):
        weight = torch.nn.Parameter(start.clone())
        optimizer = torch.optim.AdamW([weight], lr=0.1, fused=None if fused else False)
        fuse(optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            (weight * factor.T).square().sum().backward()  # the gradient is computed with other strides
            optimizer.step()
        assert is_fused(optimizer) is fused
        found.append(weight.detach())
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_counts_as_a_change_of_the_weights(fused):
    """Copies of the weights are made anew when their versions change, which a fused step alone does not see to."""
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = build_optimizer([("w", weight)], lambda groups: torch.optim.AdamW(groups, lr=0.1, fused=fused), None)
    weight.grad = torch.ones(2)
    before = weight._version
    optimizer.step()
    assert weight._version > before
