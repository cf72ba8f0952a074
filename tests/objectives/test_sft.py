"""SFT's options: the formulas, against torch's and transformers' own, in both layouts and both ways."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations.neftune import neftune_post_forward_hook
from transformers.trainer_pt_utils import LabelSmoother

from ltune.data.collate import Step, collate
from ltune.data.rows import IGNORE, Sequence
from ltune.errors import UsageError
from ltune.models.fast.model import FastModel
from ltune.objectives import EAFT, SFT, Distill
from ltune.objectives.policy import Policy
from ltune.objectives.sft import dynamic

LENGTHS = ((9, 4), (5, 2), (14, 10))  # tokens, of which so many are the prompt
WAYS = ["flat", "padded", "quick"]


@pytest.fixture
def model():
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, vocab_size=97, max_position_embeddings=64, **heads)
    return LlamaForCausalLM(config).train()


def sequences(lengths=LENGTHS, weights=None):
    draw = np.random.default_rng(0)
    made = []
    for length, prompt in lengths:
        ids = draw.integers(3, 97, length).astype(np.int32)
        labels = np.concatenate([np.full(prompt, IGNORE, np.int32), ids[prompt:]])
        weight = None if weights is None else np.resize(np.array(weights, np.float32), length - prompt)
        made.append(Sequence(ids, labels, {} if weight is None else {"weight": weight, "weights": weight.sum()}))
    return made


def batch_of(rows, way="flat", weight=None):
    tokens = sum(int((row.labels != IGNORE).sum()) for row in rows)
    return collate(rows, tuple(range(len(rows))), weight or tokens, len(rows), flat=way != "padded", pad_id=0).tensors()


def policy_of(model, way="flat"):
    return Policy(model, model, FastModel(model, torch.float32) if way == "quick" else None)


def plain(model, rows):
    return Policy(model, model).token_losses(batch_of(rows))


def gradient(loss, model):
    return torch.cat([one.flatten() for one in torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)])


@pytest.mark.parametrize("way", WAYS)
def test_label_smoothing_is_transformers(model, way):
    rows = sequences()
    loss = SFT(label_smoothing=0.1).loss(policy_of(model, way), batch_of(rows, way)).loss
    padded = batch_of(rows, "padded")
    labels = torch.full_like(padded.input_ids, IGNORE)
    for number, row in enumerate(rows):
        labels[number, : len(row)] = torch.tensor(row.labels)
    logits = model(padded.input_ids, attention_mask=padded.attention_mask, use_cache=False).logits
    expected = LabelSmoother(0.1)({"logits": logits}, labels, shift_labels=True)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient(loss, model), gradient(expected, model), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_dft_scales_each_tokens_loss_and_gradient_by_its_probability(model, way):
    rows = sequences()
    loss, metrics = SFT(dft=True).loss(policy_of(model, way), batch_of(rows, way))
    losses = plain(model, rows)
    p = torch.exp(-losses).detach()
    torch.testing.assert_close(loss, (p * losses).mean(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient(loss, model), gradient((p * losses).mean(), model), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(metrics["cross_entropy"], losses.mean().detach(), atol=1e-5, rtol=1e-5)


def test_dft_of_what_cannot_be_is_no_nan():
    losses = torch.tensor([0.0, 1e4, 3e38], requires_grad=True)
    assert dynamic(losses).tolist() == [0.0, 0.0, 0.0]
    assert torch.autograd.grad(dynamic(losses).sum(), losses)[0].tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("way", WAYS)
def test_neftune_is_transformers_for_rows_of_one_length(model, way):
    rows = sequences([(8, 3)] * 3)
    torch.manual_seed(5)
    loss = SFT(neftune_alpha=5.0).loss(policy_of(model, way), batch_of(rows, way)).loss
    embeddings = model.get_input_embeddings()
    embeddings.neftune_noise_alpha = 5.0
    hook = embeddings.register_forward_hook(neftune_post_forward_hook)
    torch.manual_seed(5)
    expected = Policy(model, model).token_losses(batch_of(rows, "padded")).mean()
    hook.remove()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient(loss, model), gradient(expected, model), atol=1e-5, rtol=1e-4)
    assert abs(float(loss) - float(plain(model, rows).mean())) > 1e-3


def test_noise_is_the_same_in_each_way_and_leaves_nothing_behind(model):
    rows, losses = sequences(), []
    for way in WAYS:
        torch.manual_seed(5)
        policy = policy_of(model, way)
        losses.append(SFT(neftune_alpha=5.0).loss(policy, batch_of(rows, way)).loss)
        torch.testing.assert_close(policy.token_losses(batch_of(rows, way)), plain(model, rows), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(losses[0], losses[2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("objective", [SFT(dft=True, neftune_alpha=5.0), SFT(label_smoothing=0.1), EAFT()], ids=["dft", "smoothed", "eaft"])
@pytest.mark.parametrize("way", WAYS)
def test_validation_is_plain_cross_entropy(model, objective, way):
    rows = sequences()
    model.eval()
    with torch.no_grad():
        loss, metrics = objective.loss(policy_of(model, way), batch_of(rows, way))
    assert metrics == {}
    torch.testing.assert_close(loss, plain(model, rows).mean(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("objective", [SFT(), SFT(dft=True), EAFT(alpha=0)], ids=["plain", "dft", "eaft"])
def test_weights(model, objective, way):
    rows, policy = sequences(weights=[1.0, 0.25]), policy_of(model, way)
    weights = torch.cat([torch.tensor(row.extras["weight"]) for row in rows])
    total = float(weights.sum())
    losses = plain(model, rows)
    expected = weights * (dynamic(losses) if getattr(objective, "dft", False) else losses)
    whole = objective.loss(policy, batch_of(rows, way, total)).loss
    parts = [objective.loss(policy, batch_of([row], way, total)).loss for row in rows]
    torch.testing.assert_close(whole, expected.sum() / total, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sum(parts), whole, atol=1e-5, rtol=1e-5)
    assert objective.counted(batch_of(rows, way, total)) == pytest.approx((total, total))


@pytest.mark.parametrize("way", WAYS)
def test_eaft(model, way):
    rows = sequences()
    loss, metrics = EAFT(alpha=0.5).loss(policy_of(model, way), batch_of(rows, way))
    logits = Policy(model, model).logits(batch_of(rows)).detach()
    p = logits.topk(20, -1).values.softmax(-1)
    weight = (-(p * p.log()).sum(-1) / 3).sqrt()
    losses = plain(model, rows)
    torch.testing.assert_close(loss, (weight * losses).mean(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient(loss, model), gradient((weight * losses).mean(), model), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(metrics["cross_entropy"], losses.mean().detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("objective", [SFT(dft=True), SFT(neftune_alpha=5.0), SFT(label_smoothing=0.1), EAFT()])
def test_a_rank_without_rows_takes_part_with_nothing(model, objective, way):
    loss = objective.loss(policy_of(model, way), batch_of([], way, 13.0)).loss
    assert loss.item() == 0.0
    loss.backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize(
    "options", [{"dft": True, "label_smoothing": 0.1}, {"label_smoothing": 1.0}, {"label_smoothing": -0.1}, {"neftune_alpha": -1.0}]
)
def test_options_that_cannot_be(options):
    with pytest.raises(UsageError, match="smoothing|neftune"):
        SFT(**options)


def test_torch_agrees_on_smoothing(model):
    batch = batch_of(sequences())
    logits = Policy(model, model).logits(batch)
    ours = Policy(model, model).token_losses(batch, smoothing=0.3)
    torch.testing.assert_close(ours, F.cross_entropy(logits, batch.targets, reduction="none", label_smoothing=0.3))


def test_noise_on_rows_that_begin_alike_is_the_plain_ways(model):
    one, other = list(range(10, 40)), list(range(50, 80))
    given = [(*(one, other)[number % 2], 90 + number, 7) for number in range(4)]
    made = [Sequence(np.array(ids, np.int32), np.array([*[IGNORE] * (len(ids) - 1), ids[-1]], np.int32)) for ids in given]
    step = Step(((0, 1, 2, 3),), {number: (row,) for number, row in enumerate(made)}, 4.0, 4, position=(0, 0), flat=True, pad_id=0)

    def loss(objective, way, any_order):
        (batch,) = step.batches(once=way == "quick", any_order=any_order)
        torch.manual_seed(0)
        return objective.loss(policy_of(model, way), batch.tensors()).loss

    noisy = SFT(neftune_alpha=15.0)
    plain_way = loss(noisy, "flat", noisy.any_order)
    torch.testing.assert_close(loss(noisy, "quick", noisy.any_order), plain_way, atol=1e-6, rtol=1e-6)
    assert abs(loss(noisy, "quick", True) - plain_way) > 1e-4  # the noise matters, and so does the order


@pytest.mark.parametrize("objective", [SFT, EAFT, Distill])
def test_rows_stay_in_their_order_where_noise_is_drawn(objective):
    assert objective().any_order
    assert not objective(neftune_alpha=5.0).any_order
