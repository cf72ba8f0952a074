"""Divergences are what TRL computes (trl.experimental.gkd), and what the definitions say."""

import math

import pytest
import torch

from ltune.errors import UsageError
from ltune.objectives.divergence import JSD, Divergence, ForwardKL, ReverseKL

BETAS: list[tuple[float, Divergence]] = [(0.0, ForwardKL()), (0.1, JSD(0.1)), (0.5, JSD()), (0.9, JSD(0.9)), (1.0, ReverseKL())]


@pytest.fixture
def logits():
    torch.manual_seed(0)
    return 2 * torch.randn(7, 50, requires_grad=True), 2 * torch.randn(7, 50)


@pytest.mark.parametrize(("beta", "divergence"), BETAS, ids=lambda value: str(value) if isinstance(value, float) else "")
def test_as_trl_has_it(beta, divergence, logits):
    gkd = pytest.importorskip("trl.experimental.gkd", reason="TRL is not installed: pip install trl")
    student, teacher = logits
    theirs = gkd.GKDTrainer.generalized_jsd_loss(student[None], teacher[None], beta=beta, temperature=1.0, reduction="none")[0].sum(-1)
    ours = divergence.of(student.log_softmax(-1), teacher.log_softmax(-1))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    mine, expected = (torch.autograd.grad(one.sum(), student, retain_graph=True)[0] for one in (ours, theirs))
    torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("beta", "divergence"), BETAS, ids=lambda value: str(value) if isinstance(value, float) else "")
def test_none_from_itself_and_some_from_others(beta, divergence, logits):
    student, teacher = (one.log_softmax(-1) for one in logits)
    assert divergence.of(student, student).abs().max() < 1e-6
    assert (divergence.of(student, teacher) > 0.01).all()


def test_a_token_that_the_teacher_excludes_adds_nothing():
    student = torch.zeros(1, 3, requires_grad=True)
    teacher = torch.tensor([[0.0, 0.0, -math.inf]]).log_softmax(-1)
    found = ForwardKL().of(student.log_softmax(-1), teacher)
    assert float(found) == pytest.approx(math.log(3 / 2))
    assert torch.isfinite(torch.autograd.grad(found.sum(), student)[0]).all()


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.5, math.nan])
def test_ends_have_their_own_classes(beta):
    with pytest.raises(UsageError, match="ForwardKL"):
        JSD(beta)
