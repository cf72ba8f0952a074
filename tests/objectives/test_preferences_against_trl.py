"""Every preference loss equals TRL's on the same rows and the same weights, in float32."""

import itertools
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from ltune.data.collate import collate
from ltune.data.rows import IGNORE, Sequence
from ltune.models.tokenizer import EMBEDDED
from ltune.objectives import CPO, DPO, KTO, ORPO, Reward, SimPO
from ltune.objectives import preference_losses as losses
from ltune.objectives.orpo import log_odds_ratio
from ltune.objectives.pairs import Pairs
from ltune.objectives.policy import Policy
from ltune.objectives.reference import Reference
from ltune.objectives.simpo import simpo

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
LENGTHS = [(4, 5), (4, 9), (2, 6), (2, 3), (7, 1), (7, 8)]  # (prompt, answer) of chosen and rejected in turn
PAD = 0


def small_model(seed):
    torch.manual_seed(seed)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 1024}
    return LlamaForCausalLM(LlamaConfig(max_position_embeddings=64, pad_token_id=PAD, initializer_range=0.3, **sizes, **heads)).train()


@pytest.fixture(scope="module")
def models():
    """A policy, and a reference that is another model."""
    return small_model(0), small_model(1)


def copies(models):
    """For trainers, which change the models' forward."""
    return [deepcopy(model) for model in models]


def sequences():
    draw = np.random.default_rng(3)
    made = []
    for number, (prompt, answer) in enumerate(LENGTHS):
        if number % 2 == 0:
            asked = draw.integers(10, 1024, prompt)
        ids = np.concatenate([asked, draw.integers(10, 1024, answer)]).astype(np.int32)
        extras = {"good": np.float32(number % 3 > 0), "divergence": np.float32(0.25)}
        made.append(Sequence(ids, np.concatenate([np.full(prompt, IGNORE, np.int32), ids[prompt:]]), extras))
    return made


def batch_of(rows, flat=True):
    return collate(sequences(), tuple(range(rows)), 100, rows, flat=flat, pad_id=PAD).tensors()


def theirs(order):
    """TRL's padded inputs of the sequences in this order."""
    rows = [sequences()[number] for number in order]
    longest = max(map(len, rows))
    ids, attended, answers = torch.full((len(rows), longest), PAD), torch.zeros(len(rows), longest), torch.zeros(len(rows), longest)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row.input_ids)
        attended[number, : len(row)] = 1
        answers[number, : len(row)] = torch.tensor(row.labels != IGNORE)
    return {"input_ids": ids.long(), "attention_mask": attended.long(), "completion_mask": answers.long()}


CHOSEN_FIRST = [0, 2, 4, 1, 3, 5]


class Given(Reference):
    """A model at hand."""

    def __init__(self, model):
        super().__init__()
        self.policy = Policy(model, model)

    def compute(self, policy, batch):
        with torch.no_grad():
            return self.policy.token_losses(batch)


# -- DPO ------------------------------------------------------------------------------------------------------------------------------

CPU = {"use_cpu": True, "report_to": "none", "bf16": False, "fp16": False, "gradient_checkpointing": False}


@pytest.fixture(scope="module")
def dpo(models, tmp_path_factory):
    pair = {"prompt": "hi", "chosen": "good", "rejected": "bad"}
    arguments = DPOConfig(str(tmp_path_factory.mktemp("dpo")), **CPU)
    tokenizer = AutoTokenizer.from_pretrained(str(EMBEDDED))
    policy, reference = copies(models)
    return DPOTrainer(policy, reference, arguments, train_dataset=Dataset.from_list([pair] * 2), processing_class=tokenizer)


@pytest.mark.parametrize("flat", [True, False], ids=["flat", "padded"])
@pytest.mark.parametrize("ld_alpha", [None, 0.4])
@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("sigmoid", losses.Sigmoid()),
        ("sigmoid_norm", losses.SigmoidNorm()),
        ("hinge", losses.Hinge()),
        ("ipo", losses.IPO()),
        ("robust", losses.Robust(0.2)),
        ("exo_pair", losses.ExoPair(0.2)),
        ("nca_pair", losses.NCAPair()),
        ("bco_pair", losses.BCOPair()),
        ("sppo_hard", losses.SPPOHard()),
        ("aot", losses.AOT(0.2)),
        ("aot_unpaired", losses.AOTUnpaired(0.2)),
        ("apo_zero", losses.APOZero()),
        ("apo_down", losses.APODown()),
        ("discopop", losses.DiscoPOP()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_dpo(name, loss, ld_alpha, flat, models, dpo):
    dpo.loss_types, dpo.loss_weights, dpo.label_smoothing, dpo.beta, dpo.ld_alpha = [name], [1.0], 0.2, 0.3, ld_alpha
    dpo._metrics["train"].clear()
    expected = dpo._compute_loss(dpo.model, theirs(CHOSEN_FIRST), False)
    mine = DPO(loss, beta=0.3, ld_alpha=ld_alpha, reference=Given(models[1])).loss(Policy(models[0], models[0]), batch_of(3, flat))
    torch.testing.assert_close(mine.loss, expected.detach().squeeze() + 0 * mine.loss, **CLOSE)
    for metric in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected"):
        assert float(mine.metrics[metric]) == pytest.approx(dpo._metrics["train"][metric][0], abs=1e-4)


def test_sigmoid_with_label_smoothing_is_cdpo():
    chosen, rejected = torch.tensor([-3.0, -7.0]), torch.tensor([-5.0, -2.0])
    zero, tokens = torch.zeros(2), torch.ones(2)
    pairs = Pairs(chosen, rejected, zero, zero, tokens, tokens)
    right, wrong = torch.sigmoid(0.1 * (chosen - rejected)), torch.sigmoid(0.1 * (rejected - chosen))
    torch.testing.assert_close(losses.Sigmoid(0.2).of(pairs, 0.1), -0.8 * right.log() - 0.2 * wrong.log())


def test_the_supervised_part_is_the_mean_over_the_answers_tokens(models):
    policy = Policy(models[0], models[0])
    plain, mixed = (DPO(sft_weight=weight, reference=Given(models[1])).loss(policy, batch_of(3)).loss for weight in (0.0, 0.5))
    pairs = Pairs.of(policy.token_losses(batch_of(3)), None, batch_of(3))
    torch.testing.assert_close(mixed - plain, -0.5 * (pairs.chosen / torch.tensor([5.0, 6.0, 1.0])).mean(), **CLOSE)


# -- no reference -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def summed(models):
    """Log-probabilities of the answers as TRL's older trainers compute them."""
    inputs = theirs(CHOSEN_FIRST)
    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, IGNORE)
    logits = models[0](input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits

    def logps(average):
        return CPOTrainer.get_batch_logps(logits, labels, average_log_prob=average).chunk(2)

    return logps


def trainer(**options):
    return SimpleNamespace(accelerator=SimpleNamespace(device=torch.device("cpu")), label_smoothing=0.0, alpha=0.0, **options)


@pytest.mark.parametrize(
    ("name", "loss"), [("sigmoid", losses.Sigmoid()), ("hinge", losses.Hinge()), ("ipo", losses.IPO())], ids=["sigmoid", "hinge", "ipo"]
)
def test_cpo(name, loss, models, summed):
    chosen, rejected = summed(average=name == "ipo")
    expected = CPOTrainer.cpo_loss(trainer(beta=0.3, loss_type=name), chosen, rejected)[0].mean() - summed(average=True)[0].mean()
    torch.testing.assert_close(CPO(loss, beta=0.3).loss(Policy(models[0], models[0]), batch_of(3)).loss, expected, **CLOSE)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_simpo(smoothing, models, summed):
    asked = trainer(beta=2.0, loss_type="simpo", simpo_gamma=0.7)
    asked.label_smoothing = smoothing
    expected = CPOTrainer.cpo_loss(asked, *summed(average=True))[0]
    torch.testing.assert_close(simpo(*summed(average=True), 2.0, 0.7, smoothing), expected, **CLOSE)
    mine = SimPO(beta=2.0, gamma=0.7, label_smoothing=smoothing).loss(Policy(models[0], models[0]), batch_of(3)).loss
    torch.testing.assert_close(mine, expected.mean(), **CLOSE)


def test_orpo(models, summed):
    chosen, rejected = summed(average=True)
    ratio, *_ = ORPOTrainer.odds_ratio_loss(trainer(beta=0.3), chosen, rejected)
    mine = ORPO(beta=0.3).loss(Policy(models[0], models[0]), batch_of(3)).loss
    torch.testing.assert_close(mine, -chosen.mean() - ratio.mean(), **CLOSE)


def test_orpo_of_a_certain_answer_is_finite():
    chosen = torch.tensor([0.0, -1e-9, -200.0], requires_grad=True)
    log_odds = log_odds_ratio(chosen, torch.tensor([-1.0, 0.0, 0.0]))
    log_odds.sum().backward()
    assert log_odds.isfinite().all()
    assert chosen.grad.isfinite().all()


# -- rated answers ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flat", [True, False], ids=["flat", "padded"])
@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired"])
def test_kto(name, flat, models, tmp_path):
    """TRL estimates its divergence on rows whose two models' log-probabilities differ by as much as ours are told."""
    rows = [{"prompt": "hi", "completion": f"good {number}", "label": bool(number % 2)} for number in range(4)]
    arguments = KTOConfig(str(tmp_path), loss_type=name, desirable_weight=1.3, undesirable_weight=0.7, beta=0.3, **CPU)
    tokenizer = AutoTokenizer.from_pretrained(str(EMBEDDED))
    policy, reference = copies(models)
    kto = KTOTrainer(policy, reference, arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    inputs = theirs(range(6)) | {"label": torch.tensor([number % 3 > 0 for number in range(6)])}
    others = theirs([1, 2, 3, 4, 5, 0])
    expected = kto._compute_loss(kto.model, inputs | {f"KL_{key}": value for key, value in others.items()}, False)
    divergence = kto._metrics["train"]["kl"][0]
    batch = batch_of(6, flat)
    batch.extras["divergence"] = torch.full((6,), divergence)
    objective = KTO(beta=0.3, good_weight=1.3, bad_weight=0.7, reference=Given(models[1]))
    mine = objective.loss(Policy(models[0], models[0]), batch)
    torch.testing.assert_close(mine.loss, expected.detach() + 0 * mine.loss, **CLOSE)
    for metric in ("rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected"):
        told = mine.metrics[metric]
        assert float(told.sum / told.count) == pytest.approx(kto._metrics["train"][metric][0], abs=1e-4)


# -- reward model -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flat", "centre"), itertools.product([True, False], [0.0, 0.1]))
def test_reward(flat, centre, tmp_path):
    model = small_model(0)
    model.save_pretrained(tmp_path / "model")
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", num_labels=1, dtype=torch.float32)
    pair = {"prompt": "hi", "chosen": "good", "rejected": "bad"}
    arguments = RewardConfig(str(tmp_path / "run"), center_rewards_coefficient=centre or None, **CPU)
    tokenizer = AutoTokenizer.from_pretrained(str(EMBEDDED))
    theirs_trainer = RewardTrainer(classifier, arguments, train_dataset=Dataset.from_list([pair] * 2), processing_class=tokenizer)
    inputs = theirs(CHOSEN_FIRST)
    del inputs["completion_mask"]
    classifier.config.pad_token_id = PAD
    classifier.train()
    expected = theirs_trainer.compute_loss(classifier, inputs)
    objective = Reward(bias=False, centre=centre)
    objective.extend(model, load=None)
    objective.head.linear.weight.data.copy_(classifier.score.weight.data)
    mine = objective.loss(Policy(model, model), batch_of(3, flat))
    torch.testing.assert_close(mine.loss, expected.detach() + 0 * mine.loss, **CLOSE)
    assert float(mine.metrics["margin"]) == pytest.approx(theirs_trainer._metrics["train"]["margin"][0], abs=1e-5)
    assert float(mine.metrics["accuracy"]) == pytest.approx(theirs_trainer._metrics["train"]["accuracy"][0], abs=1e-6)
