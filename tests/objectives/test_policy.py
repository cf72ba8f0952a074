"""Flat and padded batches give the same losses as each row alone, and rows do not see each other."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from ltune.data.collate import collate
from ltune.data.rows import IGNORE, Sequence
from ltune.objectives import SFT
from ltune.objectives.policy import Policy


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, vocab_size=97, max_position_embeddings=64, **heads)
    return LlamaForCausalLM(config).train()


@pytest.fixture
def sequences():
    draw = np.random.default_rng(0)
    made = []
    for length, prompt in ((9, 4), (5, 2), (14, 10)):
        ids = draw.integers(3, 97, length).astype(np.int32)
        made.append(Sequence(ids, np.concatenate([np.full(prompt, IGNORE, np.int32), ids[prompt:]])))
    return made


def batch_of(sequences, flat, window_tokens=13):
    return collate(sequences, tuple(range(len(sequences))), window_tokens, len(sequences), flat=flat, pad_id=0).tensors()


def alone(model, sequence):
    """Token losses the long way: the whole logits of one row."""
    ids, labels = torch.tensor(sequence.input_ids).long()[None], torch.tensor(sequence.labels).long()
    logits = model(input_ids=ids).logits[0]
    return F.cross_entropy(logits[:-1], labels[1:], reduction="none", ignore_index=IGNORE)[labels[1:] != IGNORE]


@pytest.mark.parametrize("flat", [True, False], ids=["flat", "padded"])
def test_token_losses_are_those_of_each_row_alone(model, sequences, flat):
    expected = torch.cat([alone(model, sequence) for sequence in sequences])
    batch = batch_of(sequences, flat)
    assert batch.tokens == 28
    assert len(batch.targets) == 5 + 3 + 4
    losses = Policy(model, model).token_losses(batch)
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-5)


def test_the_loss_is_the_sum_over_the_windows_tokens(model, sequences):
    policy = Policy(model, model)
    whole = SFT().loss(policy, batch_of(sequences, True)).loss
    parts = [SFT().loss(policy, batch_of([sequence], True)).loss for sequence in sequences]
    torch.testing.assert_close(sum(parts), whole)
    torch.testing.assert_close(whole, torch.cat([alone(model, sequence) for sequence in sequences]).sum() / 13)


@pytest.mark.parametrize("flat", [True, False], ids=["flat", "padded"])
def test_a_rank_without_rows_takes_part_with_nothing(model, flat):
    batch = batch_of([], flat)
    assert batch.tokens == 0
    loss = SFT().loss(Policy(model, model), batch).loss
    assert loss.item() == 0.0
    loss.backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())
    model.zero_grad()


def test_the_trap_that_use_cache_false_avoids(model, sequences):
    """With transformers' default, a flat batch is silently wrong: rows see each other."""
    batch = batch_of(sequences, True)
    apart = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
    mixed = model(input_ids=batch.input_ids, position_ids=batch.position_ids).logits
    assert (apart[0, :9] - mixed[0, :9]).abs().max() < 1e-5
    assert (apart[0, 9:] - mixed[0, 9:]).abs().max() > 1e-3
