"""Distillation: the divergence over the vocabulary at trained tokens, in parts, in both layouts and both ways."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from ltune.data.collate import collate
from ltune.data.rows import IGNORE, Sequence
from ltune.errors import UsageError
from ltune.models.fast.model import FastModel
from ltune.models.tokenizer import load_tokenizer
from ltune.objectives import Distill, logits
from ltune.objectives.divergence import JSD, ForwardKL, ReverseKL
from ltune.objectives.policy import Policy

WAYS = ["flat", "padded", "quick"]
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "max_position_embeddings": 64}


def llama(seed, width=97, hidden=32):
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(hidden_size=hidden, intermediate_size=64, vocab_size=width, initializer_range=0.3, **HEADS))


@pytest.fixture
def student():
    return llama(0).train()


@pytest.fixture
def teacher():
    """Larger, and its vocabulary's table is padded."""
    return llama(1, width=100, hidden=48).eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch):
    monkeypatch.setattr(logits, "BYTES", 4 * 97 * 5)  # five positions


def batch(way="flat", lengths=((9, 4), (5, 2), (14, 10))):
    draw = np.random.default_rng(0)
    rows = []
    for length, prompt in lengths:
        ids = draw.integers(3, 97, length).astype(np.int32)
        rows.append(Sequence(ids, np.concatenate([np.full(prompt, IGNORE, np.int32), ids[prompt:]])))
    tokens = sum(length - prompt for length, prompt in lengths)
    return collate(rows, tuple(range(len(rows))), tokens or 12, len(rows), flat=way != "padded", pad_id=0).tensors()


def policy(model, way, causal=None):
    causal = causal or model
    return Policy(model, causal, FastModel(causal, torch.float32) if way == "quick" else None)


def distill(teacher, way, **options):
    made = Distill("teacher", **options)
    made.extend(None, lambda name, **options: policy(teacher, way))
    return made


def whole(model):
    """Log-probabilities and losses by all logits at once."""
    found = Policy(model, model).logits(batch())[:, :97].float()
    return found, -found.log_softmax(-1).gather(1, batch().targets[:, None])[:, 0]


def gradient(loss, model):
    return torch.cat([one.flatten() for one in torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("divergence", [ForwardKL(), ReverseKL(), JSD(0.3)], ids=lambda one: type(one).__name__)
def test_the_loss_is_the_formula(student, teacher, way, divergence):
    objective = distill(teacher, way, divergence=divergence, temperature=2.0, weight=0.5, sft_weight=0.25)
    loss, metrics = objective.loss(policy(student, way), batch(way))
    (mine, losses), (theirs, teachers) = whole(student), whole(teacher)
    away = divergence.of((mine / 2).log_softmax(-1), (theirs / 2).log_softmax(-1))
    expected = 0.5 * 4 * away.mean() + 0.25 * losses.mean()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient(loss, student), gradient(expected, student), atol=1e-5, rtol=1e-4)
    found = [metrics[name] for name in ("divergence", "cross_entropy", "teacher/cross_entropy")]
    torch.testing.assert_close(found, [away.mean(), losses.mean(), teachers.mean()], atol=1e-5, rtol=1e-5, check_stride=False)
    assert not any(value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("way", WAYS)
def test_the_model_itself_without_its_adapter_teaches(way):
    base = llama(0)
    model = get_peft_model(base, LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM")).train()
    objective = Distill(sft_weight=1.0, dft=True, weight=0.1)
    objective.extend(model, None)
    before, metrics = objective.loss(policy(model, way, base), batch(way))
    assert abs(float(metrics["divergence"])) < 1e-6  # a new adapter changes nothing
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    loss, metrics = objective.loss(policy(model, way, base), batch(way))
    with model.disable_adapter(), torch.no_grad():
        theirs, _ = whole(base)
    mine, losses = whole(base)
    away = ForwardKL().of(mine.log_softmax(-1), theirs.log_softmax(-1)).mean()
    assert away > 0.01
    expected = 0.1 * away + (torch.exp(-losses.detach()) * losses).mean()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for name, parameter in model.named_parameters() if "lora_A" in name)


@pytest.mark.parametrize("way", WAYS)
def test_a_rank_without_rows_takes_part_with_nothing(student, teacher, way):
    loss, _ = distill(teacher, way).loss(policy(student, way), batch(way, ()))
    assert loss.item() == 0.0
    loss.backward()


@pytest.mark.parametrize("way", WAYS)
def test_logits_never_stand_in_memory_whole(student, teacher, way, monkeypatch):
    sizes = []
    linear = torch.nn.functional.linear

    def watched(read, weight, bias=None):
        if weight.shape[0] in (97, 100):
            sizes.append(read.shape[:-1].numel())
        return linear(read, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    objective, student = distill(teacher, way), policy(student, way)
    student.has_plain_head, objective.teacher.has_plain_head  # noqa: B018 (proved once, on a few tokens)
    sizes.clear()
    objective.loss(student, batch(way)).loss.backward()
    assert max(sizes, default=5) <= 5


def test_a_head_that_is_more_than_a_product_is_used_as_it_is(student, teacher):
    forward = student.forward

    def capped(*arguments, **options):
        output = forward(*arguments, **options)
        output.logits = 5 * torch.tanh(output.logits / 5)
        return output

    student.forward = capped
    made = Policy(student, student)
    assert not made.has_plain_head
    loss, _ = distill(teacher, "flat").loss(made, batch())
    (mine, _), (theirs, _) = whole(student), whole(teacher)
    torch.testing.assert_close(loss, ForwardKL().of(mine.log_softmax(-1), theirs.log_softmax(-1)).mean(), atol=1e-5, rtol=1e-5)


def test_another_tokenizer_is_refused():
    mine, theirs = load_tokenizer("tiny"), load_tokenizer("tiny")
    Distill("teacher").suit(mine, lambda name, revision: theirs)
    theirs.add_tokens(["<new>"])
    with pytest.raises(UsageError, match=r"another tokenizer.*\n.*'<new>'") as error:
        Distill("teacher").suit(mine, lambda name, revision: theirs)
    assert len(str(error.value).splitlines()) <= 5
    Distill().suit(mine, None)


@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"teacher": None, "teacher_adapter": "some"}, {"weight": 0}, {"sft_weight": -1}, {"dft": True}]
)
def test_options_that_cannot_be(options):
    with pytest.raises(UsageError, match="Distill"):
        Distill(**{"teacher": "teacher", **options})


def test_without_an_adapter_there_is_nothing_to_leave_out(student):
    with pytest.raises(UsageError, match="teacher"):
        Distill().extend(student, None)
