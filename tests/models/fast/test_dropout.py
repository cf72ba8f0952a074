"""Dropout in the adapter, the quick way: what PEFT's modules compute with the same masks, whatever is kept, held or cut up."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from ltune.models.fast.dropout import Draw, Mask, philox
from ltune.models.fast.layer import Keep
from ltune.models.fast.memory import Setting
from ltune.models.fast.model import FastModel
from ltune.models.fast.read import Unsuited
from ltune.models.fast.tiles import Rows
from ltune.objectives.policy import Policy
from tests.models.fast import test_model as case

RATE, SEED = 0.3, 11


def build(family, make=case.build, **options):
    model, causal = make(family, **options)
    for module in model.modules():
        if hasattr(module, "lora_dropout"):
            module.lora_dropout["default"] = torch.nn.Dropout(RATE)
    return model.train(), causal


class Masked(torch.nn.Module):
    """In place of torch's dropout: the masks of the quick way. ``rows`` tells at which places a row's tokens stand there."""

    def __init__(self, rows, mask, layer):
        super().__init__()
        self.rows, self.mask, self.layer = rows, mask, layer

    def forward(self, x):
        places = self.rows.now
        return x * self.mask.of(self.layer, int(places.max()) + 1, x.shape[-1]).to(x.dtype)[places]


class Places:
    """Of a row's tokens, in what a projection reads."""

    def __init__(self, places):
        self.each, self.now = iter(places.split(case.LENGTHS)), None

    def __call__(self, *_):
        self.now = next(self.each)


def quick(fast, seed=SEED):
    ids, positions, starts, at, targets = case.batch()
    torch.manual_seed(seed)
    return fast.token_losses(ids, positions, Rows(starts, max(case.LENGTHS), lengths=case.LENGTHS), at, targets)


def plain(causal, fast):
    """PEFT's own modules with the masks that ``quick`` draws."""
    torch.manual_seed(SEED)
    draw = Draw(torch.randint(2**62, (1,)))
    ids, _, _, at, _ = case.batch()
    whole, read = torch.arange(len(ids)), torch.zeros(len(ids), dtype=torch.long)
    read[at] = torch.arange(len(at))  # the last layer goes on with what is read
    hooks, before = [], {}
    for number, projection in enumerate(fast.projections):
        places = Places(read if number > len(fast.projections) - 4 else whole)
        hooks.append(projection.layers[0].register_forward_pre_hook(places))
        for layer, module in enumerate(one for one in projection.layers if hasattr(one, "lora_dropout")):
            before[module] = module.lora_dropout["default"]
            module.lora_dropout["default"] = Masked(places, projection.mask(draw), layer)
    losses = case.plain(causal)
    for hook in hooks:
        hook.remove()
    for module, dropout in before.items():
        module.lora_dropout["default"] = dropout
    return losses


def assert_same(model, causal, fast):
    got, expected = quick(fast), plain(causal, fast)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    found, wanted = case.gradients(got, model), case.gradients(expected, model)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert torch.linalg.norm(found[name] - gradient) <= 2e-4 * torch.linalg.norm(gradient) + 1e-7, name
    return got


@pytest.mark.parametrize("family", case.FAMILIES)
@pytest.mark.parametrize(("keep", "chunk"), [(Keep.ALL, None), (Keep.ATTENTION, None), (Keep.NOTHING, 7)])
def test_losses_and_gradients_are_those_of_the_plain_way(family, keep, chunk):
    model, causal = build(family)
    fast = FastModel(causal, torch.float32)
    fast.keep, fast.chunk, fast.head_chunk = keep, chunk, 5
    assert_same(model, causal, fast)


@pytest.mark.parametrize(("rank", "targets"), [(3, "all-linear"), (40, "all-linear"), (5, ["v_proj", "gate_proj", "down_proj"])])
@pytest.mark.parametrize("held", [True, False])
def test_quantized_weights_held_or_not(rank, targets, held):
    model, causal = build("llama", case.build_quantized, rank=rank, targets=targets)
    fast = FastModel(causal, torch.float32)
    fast.adopt(Setting(1000, cached=held))
    assert_same(model, causal, fast)
    case.change(model)
    assert_same(model, causal, fast)


def test_masks_follow_the_seed_and_validation_has_none():
    model, causal = build("llama")
    fast = FastModel(causal, torch.float32)
    first, again = assert_same(model, causal, fast), assert_same(model, causal, fast)
    assert torch.equal(first, again)
    assert not torch.allclose(first, quick(fast, SEED + 1))
    model.eval()
    torch.testing.assert_close(case.quick(fast), case.plain(causal), atol=1e-5, rtol=1e-5)
    assert torch.equal(quick(fast), quick(fast, SEED + 1))


def test_in_training_no_row_lends_another_its_tokens():
    model, causal = build("llama")
    fast, batch = FastModel(causal, torch.float32), case.answers()
    policy = Policy(model, causal, fast)
    assert batch.compact.borrowed
    assert len(policy._places(batch)[0]) == batch.tokens
    model.eval()
    assert len(policy._places(batch)[0]) < batch.tokens


def test_passes_of_another_adapter_or_none_drop_nothing():
    model, causal = build("llama")
    model.add_adapter("other", LoraConfig(r=2, lora_dropout=RATE, target_modules="all-linear"))
    fast = FastModel(causal, torch.float32)
    with torch.no_grad():
        for within in (fast.without_adapter, lambda: fast.with_adapter("other")):
            with within():
                assert torch.equal(quick(fast), quick(fast, SEED + 1))


def test_the_dropout_of_an_adapter_that_is_not_trained_is_not_that_of_the_one_that_is():
    model, causal = case.build("llama")
    model.add_adapter("other", LoraConfig(r=2, lora_dropout=RATE, target_modules="all-linear"))
    assert not FastModel(causal, torch.float32).drops


def test_what_is_not_served_goes_the_plain_way():
    model, causal = build("llama")
    causal.model.layers[1].self_attn.k_proj.lora_dropout["default"] = torch.nn.Dropout(0.1)
    with pytest.raises(Unsuited, match="layers side by side whose dropout differs"):
        FastModel(causal, torch.float32)
    with pytest.raises(Unsuited, match="adapter.dropout before ranks of 300 side by side; up to 256 are served"):
        FastModel(build("llama", rank=100)[1], torch.float32)
    model, causal = case.build("llama")
    causal.model.layers[0].mlp.up_proj.lora_dropout["default"] = torch.nn.AlphaDropout(0.1)
    with pytest.raises(Unsuited, match="adapter.dropout by a AlphaDropout"):
        FastModel(causal, torch.float32)


def test_as_peft_makes_it():
    config = LoraConfig(r=2, lora_dropout=RATE, target_modules="all-linear")
    fast = FastModel(get_peft_model(case.build("llama", "full")[0], config).base_model.model, torch.float32)
    assert fast.drops
    assert {projection.dropout for projection in fast.projections} == {RATE}


# -- masks ----------------------------------------------------------------------------------------------------------------------------


def mask(seed=SEED, number=0, rate=RATE, first=0, layers=3):
    return Mask(Draw(torch.tensor([seed]), first), number, rate, torch.zeros(1, dtype=torch.int32), layers)


def test_philox_is_what_its_authors_say():
    """The first line of their known answers for seven rounds."""
    zero = torch.zeros((), dtype=torch.long)
    assert philox(torch.tensor([0]), zero, zero, zero)[0].tolist() == [0x5F6FB709, 0x4F121F81, 0x0D893F64, 0x4F730A48]


@settings(max_examples=30, deadline=None)
@given(rate=st.floats(0.001, 0.999), seed=st.integers(0, 2**62 - 1), number=st.integers(0, 2000), width=st.integers(1, 40))
def test_as_many_are_dropped_as_asked_and_the_sum_is_kept(rate, seed, number, width):
    one = mask(seed, number, rate)
    found = one.of(2, 4000, width)
    kept = found > 0
    deviation = (rate * (1 - rate) / kept.numel()) ** 0.5
    assert abs(float(kept.double().mean()) - (1 - rate)) <= 5.5 * deviation + 2**-16
    assert float(found.max()) == pytest.approx(1 / (1 - rate), rel=2**-16 / (1 - rate) + 1e-6)


@pytest.mark.parametrize("rate", [1 - 1e-9, 1e-9])
def test_rates_that_16_bits_do_not_tell_from_none_or_all(rate):
    found = mask(rate=rate).of(0, 2000, 640)
    assert torch.isfinite(found).all()
    assert 0 < (found > 0).sum() <= found.numel()


def test_masks_have_nothing_to_do_with_each_other():
    found = [mask(), mask(SEED + 1), mask(SEED + 2**40), mask(number=1), mask(first=1)]
    flat = [one.of(layer, 3000, 64).flatten() > 0 for one in found for layer in range(2)]
    flat.append((mask().of(0, 3000, 65)[:, 1:] > 0).flatten())
    for one, other in combinations(flat, 2):
        assert abs(float(torch.corrcoef(torch.stack([one.double(), other.double()]))[0, 1])) < 5 / len(one) ** 0.5


@given(first=st.integers(0, 100), tokens=st.integers(1, 30))
def test_a_part_has_its_part_of_the_mask(first, tokens):
    assert torch.equal(mask().of(1, first + tokens, 20)[first:], mask(first=first).of(1, tokens, 20))
