import json
import math
from pathlib import Path

import pytest
import torch

from ltune.objectives.advantages import generalized_advantages, group_advantages, leave_one_out, sums, whitened
from ltune.objectives.clipping import k1, k3, policy_loss, value_loss
from ltune.objectives.kl_control import AdaptiveKL, FixedKL, RunningScale

REFERENCE = json.loads((Path(__file__).parent / "ppo_trl_0_9_6.json").read_text())  # what TRL's PPO last came to before it left TRL


@pytest.mark.parametrize("case", REFERENCE["cases"], ids=["plain", "whitened rewards"])
def test_ppo_on_a_fixed_rollout_is_trls(case):
    lengths = torch.tensor(REFERENCE["lengths"])
    old, reference, values, new, predicted = (torch.tensor(REFERENCE[name]) for name in ("old", "reference", "values", "new", "predicted"))
    rewards = -0.15 * k1(old, reference)
    rewards[lengths.cumsum(0) - 1] += torch.tensor(REFERENCE["scores"])
    assert rewards.tolist() == pytest.approx(case["rewards"], abs=1e-6)
    if case["whiten_rewards"]:
        rewards = whitened(rewards, keep_mean=True)
    advantages = generalized_advantages(rewards, values, lengths, gamma=0.98, decay=0.9)
    assert (advantages + values).tolist() == pytest.approx(case["returns"], abs=1e-6)
    advantages, returns = whitened(advantages), advantages + values
    assert advantages.tolist() == pytest.approx(case["advantages"], abs=1e-6)
    new.requires_grad_(), predicted.requires_grad_()
    policy = policy_loss(new - old, advantages, 0.2, 0.2)
    value, value_clipped = value_loss(predicted, values, returns, 0.2)
    assert float(policy.loss.mean()) == pytest.approx(case["policy_loss"], abs=1e-6)
    assert float(value.mean()) == pytest.approx(case["value_loss"], abs=1e-6)
    (policy.loss.mean() + 0.1 * value.mean()).backward()
    assert new.grad.tolist() == pytest.approx(case["policy_gradient"], abs=1e-6)
    assert predicted.grad.tolist() == pytest.approx(case["value_gradient"], abs=1e-6)
    assert float((policy.low | policy.high).float().mean()) == pytest.approx(case["clip_fraction"], abs=1e-6)
    assert float(value_clipped.float().mean()) == pytest.approx(case["value_clip_fraction"], abs=1e-6)


def test_adaptive_kl_moves_as_trls_does_and_goes_on_from_its_state():
    control, again = AdaptiveKL(0.2, 6.0, 10_000), AdaptiveKL(0.2, 6.0, 10_000)
    for kl, answers, expected in REFERENCE["adaptive_kl"]:
        control.update(kl, answers)
        assert control.coefficient == pytest.approx(expected, abs=1e-9)
    again.restore(control.state())
    assert again.coefficient == control.coefficient
    fixed = FixedKL(0.1)
    fixed.update(50.0, 1000)
    assert fixed.coefficient == 0.1


def test_scores_are_normalized_as_trl_does_and_the_moments_go_on_from_their_state():
    scale = RunningScale()
    for batch in REFERENCE["score_norm"]:
        again = RunningScale()
        again.restore(scale.state())
        scale = again
        assert scale.normalized(torch.tensor(batch["scores"])).tolist() == pytest.approx(batch["normalized"], abs=1e-5)


def test_one_score_alone_and_equal_ones_are_no_nan():
    assert RunningScale().normalized(torch.tensor([3.0])).tolist() == [0.0]
    assert RunningScale().normalized(torch.tensor([3.0, 3.0])).tolist() == [0.0, 0.0]
    assert whitened(torch.tensor([3.0])).tolist() == [0.0]
    assert whitened(torch.tensor([3.0, 3.0])).tolist() == [0.0, 0.0]
    assert whitened(torch.tensor([])).tolist() == []


@pytest.mark.parametrize("advantages", [group_advantages, leave_one_out])
def test_equal_rewards_in_a_group_teach_nothing(advantages):
    found = advantages(torch.tensor([0.1] * 6 + [0.0, 1.0, 1.0, 0.0, 0.0, 0.0]), 6)
    assert found[:6].tolist() == [0.0] * 6  # exactly
    assert found[6:].abs().min() > 0
    assert torch.isfinite(found).all()


def test_answers_without_a_reward_count_in_no_mean():
    nan = math.nan
    assert group_advantages(torch.tensor([1.0, nan, 0.0, nan, nan, nan]), 3, "none").tolist() == [0.5, 0.0, -0.5, 0.0, 0.0, 0.0]
    assert leave_one_out(torch.tensor([1.0, nan, 0.0, 4.0, nan, nan]), 3).tolist() == [1.0, 0.0, -1.0, 0.0, 0.0, 0.0]


def test_scales_of_group_advantages():
    rewards = torch.tensor([1.0, 0.0, 4.0, 0.0])
    assert group_advantages(rewards, 2, "none").tolist() == [0.5, -0.5, 2.0, -2.0]
    assert group_advantages(rewards, 2, "group").tolist() == pytest.approx([0.7070, -0.7070, 0.7071, -0.7071], abs=2e-4)
    assert group_advantages(rewards, 2, "batch").tolist() == pytest.approx([x / 1.893069 for x in (0.5, -0.5, 2.0, -2.0)])


def test_advantages_of_a_token_see_only_its_own_answer():
    rewards, values = torch.tensor([0.0, 1.0, 5.0]), torch.zeros(3)
    found = generalized_advantages(rewards, values, torch.tensor([2, 1]), gamma=0.5, decay=1.0)
    assert found.tolist() == [0.5, 1.0, 5.0]
    assert sums(rewards, torch.tensor([2, 1])).tolist() == [1.0, 5.0]


def test_a_larger_upper_bound_clips_less():
    log_ratios, better, worse = torch.tensor([1.25]).log(), torch.tensor([1.0]), torch.tensor([-1.0])
    assert policy_loss(log_ratios, better, 0.2, 0.2).loss.item() == pytest.approx(-1.2)
    assert policy_loss(log_ratios, better, 0.2, 0.28).loss.item() == pytest.approx(-1.25)
    assert policy_loss(log_ratios, worse, 0.2, 0.2).loss.item() == pytest.approx(1.25)
    assert policy_loss(log_ratios, better, 0.2, 0.2).high.item()
    assert not policy_loss(log_ratios, better, 0.2, 0.28).high.item()


def test_both_estimates_of_the_divergence_have_its_mean():
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.5, 0.25, 0.25])
    divergence = (p * (p / q).log()).sum()
    assert (p * k1(p.log(), q.log())).sum().item() == pytest.approx(divergence.item(), abs=1e-6)
    assert (p * k3(p.log(), q.log())).sum().item() == pytest.approx(divergence.item(), abs=1e-6)
    assert k3(p.log(), q.log()).min() >= 0
