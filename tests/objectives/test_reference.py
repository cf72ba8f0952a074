"""References: the model without its adapter, with another one, another model; the quick way as the plain one; cached as computed."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from ltune.data.collate import Step
from ltune.data.rows import IGNORE, Sequence
from ltune.errors import UsageError
from ltune.models.fast.model import FastModel
from ltune.objectives.base import Actor
from ltune.objectives.policy import Policy
from ltune.objectives.reference import AdapterOff, OtherAdapter, OtherModel

CPU = torch.device("cpu")


def bare():
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 97}
    return LlamaForCausalLM(LlamaConfig(max_position_embeddings=64, initializer_range=0.2, **sizes, **heads)).train()


def adapted(seed, targets="all-linear"):
    model = get_peft_model(bare(), LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=5, target_modules=targets))
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def step():
    draw = np.random.default_rng(0)

    def sequence(length, prompt):
        ids = draw.integers(3, 97, length).astype(np.int32)
        return Sequence(ids, np.concatenate([np.full(prompt, IGNORE, np.int32), ids[prompt:]]))

    rows = {number: (sequence(6 + number, 3), sequence(9 - number, 3)) for number in range(3)}
    return Step(((0, 1), (2,)), rows, 30, 3, (0, 0), True, 0)


def batch_of(step):
    (batch,) = step.batches(1000)
    return batch.tensors()


def policy_of(model, quick):
    causal = model.get_base_model()
    return Policy(model, causal, FastModel(causal, torch.float32) if quick else None)


def losses_of(model, batch):
    with torch.no_grad():
        return Policy(model, model).token_losses(batch)


@pytest.mark.parametrize("quick", [False, True], ids=["plain", "quick"])
def test_without_its_adapter_it_is_the_bare_model(quick, step):
    model, batch = adapted(1), batch_of(step)
    policy, reference = policy_of(model, quick), AdapterOff()
    reference.extend(model, load=None)
    before = policy.token_losses(batch)
    torch.testing.assert_close(reference.token_losses(policy, batch), losses_of(bare(), batch), atol=1e-5, rtol=1e-5)
    after = policy.token_losses(batch)
    torch.testing.assert_close(after, before)
    assert (after - losses_of(bare(), batch)).abs().max() > 1e-2
    after.sum().backward()
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if "lora_" in name)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]], ids=["all", "some"])
@pytest.mark.parametrize("quick", [False, True], ids=["plain", "quick"])
def test_with_another_adapter(quick, targets, step, tmp_path):
    other, batch = adapted(2, targets), batch_of(step)
    other.save_pretrained(tmp_path)
    model = adapted(1)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    reference = OtherAdapter(str(tmp_path))
    reference.extend(model, load=None)
    policy = policy_of(model, quick)
    before = policy.token_losses(batch)
    torch.testing.assert_close(reference.token_losses(policy, batch), losses_of(other, batch), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(policy.token_losses(batch), before)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trained


def test_another_model(step):
    batch = batch_of(step)
    asked = []

    def load(name, **options):
        asked.append((name, options))
        return Policy(bare(), bare())

    reference = OtherModel("somewhere", revision="main", adapter="folder")
    reference.extend(None, load)
    assert asked == [("somewhere", {"revision": "main", "quantize": None, "adapter": "folder"})]
    torch.testing.assert_close(reference.token_losses(None, batch), losses_of(bare(), batch))


def test_cached_losses_are_the_computed_ones_and_are_computed_once(step, monkeypatch):
    model = adapted(1)
    policy = policy_of(model, quick=False)
    reference, times = AdapterOff(cache=True), []
    compute = reference.compute
    monkeypatch.setattr(reference, "compute", lambda *arguments: times.append(1) or compute(*arguments))
    for _ in range(2):
        batch = batch_of(reference.collect(step, Actor(policy, CPU)))
        torch.testing.assert_close(reference.token_losses(policy, batch), losses_of(bare(), batch), atol=1e-5, rtol=1e-5)
    assert len(times) == 3


def test_a_whole_model_has_no_adapter_to_leave_out():
    with pytest.raises(UsageError, match="OtherModel"):
        AdapterOff().extend(bare(), load=None)


def test_a_folder_without_an_adapter_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no PEFT folder"):
        OtherAdapter(str(tmp_path)).extend(adapted(1), load=None)
