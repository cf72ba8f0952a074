"""GRPO and RLOO on a fixed rollout equal TRL's: its trainers answer with the given ids, then all that follows is theirs, and ours.

PPO has left TRL; test_advantages.py compares it with what TRL's last PPO came to.
"""

from copy import deepcopy

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.trainer.utils import add_fused_lm_head

from ltune.data.collate import Step
from ltune.data.rows import IGNORE, Sequence
from ltune.generation.sampling import Sampling
from ltune.models.tokenizer import EMBEDDED
from ltune.objectives import GRPO, RLOO
from ltune.objectives.policy import Policy
from ltune.objectives.reference import Reference
from ltune.objectives.rewards import Length
from ltune.objectives.rollout import made_of, step_of

GROUP, LONGEST = 4, 8
PROMPTS = [[{"role": "user", "content": text}] for text in ("Who are you?", "Say yes.")]
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


class Given(Reference):
    """A model at hand."""

    def __init__(self, model):
        super().__init__()
        self.policy = Policy(model, model)

    def compute(self, policy, batch, temperature=1.0):
        with torch.no_grad():
            return self.policy.token_losses(batch, temperature=temperature)


def small_model(seed):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 1024, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(max_position_embeddings=64, pad_token_id=0, eos_token_id=2, initializer_range=0.3, **sizes)).train()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(EMBEDDED)


@pytest.fixture(scope="module")
def answers(tokenizer):
    """Of unequal length; some come to their end, two are as long as they may be."""
    draw = np.random.default_rng(5)
    made = [draw.integers(10, 1000, int(length)).tolist() for length in (3, 8, 1, 5, 6, 2, 8, 4)]
    return [answer if len(answer) == LONGEST else [*answer[:-1], tokenizer.eos_token_id] for answer in made]


@pytest.fixture(scope="module")
def trainers(tokenizer, answers, tmp_path_factory):
    """TRL's, with a reference that is another model."""
    made = {}
    for name, kind, config in (("GRPO", GRPOTrainer, GRPOConfig), ("RLOO", RLOOTrainer, RLOOConfig)):
        arguments = config(
            output_dir=str(tmp_path_factory.mktemp("trl")),
            use_cpu=True,
            bf16=False,
            report_to=[],
            per_device_train_batch_size=2 * GROUP,
            num_generations=GROUP,
            max_completion_length=LONGEST,
            num_iterations=2,
            beta=0.0,
        )
        rows = Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS])
        trainer = kind(model=small_model(0), reward_funcs=[rewards], args=arguments, train_dataset=rows, processing_class=tokenizer)
        turn = answers if name == "RLOO" else (answers, None)
        trainer._generate_single_turn = lambda *given, turn=turn, **named: turn
        trainer.ref_model = small_model(1)
        trainer.current_gradient_accumulation_steps = 1
        made[name] = trainer
    return made


def rewards(completion_ids, **others):
    return [float(sum(ids) % 7) / 2 for ids in completion_ids]


def theirs(trainer, **settings):
    """(advantages, loss, gradient, metrics): rollout by one set of weights, loss by another."""
    for name, value in settings.items():
        setattr(trainer.args if name == "use_bias_correction_kl" else trainer, name, value)
    for model in (trainer.model, trainer.ref_model):
        add_fused_lm_head(model, temperature=trainer.temperature, outputs=("log_probs", "entropy"))
    start = deepcopy(trainer.model.state_dict())
    trainer._metrics["train"].clear()
    rollout = trainer._generate_and_score_completions([{"prompt": prompt} for prompt in PROMPTS for _ in range(GROUP)])
    move(trainer.model)
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, rollout)
    loss.backward()
    gradient = trainer.model.model.layers[0].mlp.up_proj.weight.grad.clone()
    trainer.model.load_state_dict(start)
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    return rollout["advantages"], loss.detach(), gradient, metrics


def move(model):
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.03 * torch.randn(weight.shape, generator=generator)


def ours(objective, tokenizer, answers, flat):
    """The same of ours, in micro-batches of three."""
    model, repeated = small_model(0), [prompt for prompt in PROMPTS for _ in range(GROUP)]
    prompts = [tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"] for prompt in repeated]
    rollout = made_of(prompts, answers, [0] * GROUP + [1] * GROUP, {tokenizer.eos_token_id}, 1)
    rollout.rewards = torch.tensor(rewards(answers))
    like = Step(((0, 1),), {row: (Sequence([1], [IGNORE]),) for row in (0, 1)}, 0, 2, (0, 0), flat, 0)
    numbers = torch.arange(len(rollout))
    window = int(rollout.answered.sum()), len(rollout)

    def batches():
        return [batch.tensors() for batch in step_of(rollout, numbers.tolist(), like, 3, window).batches()]

    policy = Policy(model, model)
    with torch.no_grad():
        found = [objective.read(policy, batch) for batch in batches()]
    rollout.of_tokens = {name: torch.cat([one[name] for one in found]) for name in found[0]}
    told = objective.judge(rollout)
    rollout.of_answers["share"] = objective.shares(rollout, numbers)
    move(model)
    losses = [objective.trained(policy, batch) for batch in batches()]
    sum(loss.loss for loss in losses).backward()
    metrics = {name: float(sum(loss.metrics[name] for loss in losses)) for name in losses[0].metrics}
    loss = sum(loss.loss.detach() for loss in losses)
    return rollout.of_answers["advantages"], loss, model.model.layers[0].mlp.up_proj.weight.grad, {**metrics, **told}


def assert_same(mine, yours, names):
    torch.testing.assert_close(mine[0], yours[0], **CLOSE)
    torch.testing.assert_close(mine[1], yours[1], **CLOSE)
    torch.testing.assert_close(mine[2], yours[2], **CLOSE)
    assert {name: mine[3][name] for name in names} == pytest.approx({name: yours[3][name] for name in names}, abs=1e-5, rel=1e-5)
    assert yours[2].abs().max() > 1e-3  # the comparison above is not of zeros


DEFAULT = {
    "loss_type": "dapo", "beta": 0.0, "epsilon_low": 0.2, "epsilon_high": 0.2, "scale_rewards": "group", "temperature": 1.0,
    "importance_sampling_level": "token", "mask_truncated_completions": False, "use_bias_correction_kl": True,
}  # fmt: skip
CASES = {
    "tokens": ({}, {}),
    "answers, with a reference": ({"normalize": "answers", "kl": 0.1}, {"loss_type": "grpo", "beta": 0.1}),
    "as in the paper": (
        {"normalize": "answers", "kl": 0.1, "weigh_kl": False},
        {"loss_type": "grpo", "beta": 0.1, "use_bias_correction_kl": False},
    ),
    "Dr. GRPO": ({"normalize": "constant", "scale": "none"}, {"loss_type": "dr_grpo", "scale_rewards": "none"}),
    "DAPO": ({"clip_high": 0.28, "mask_truncated": True}, {"epsilon_high": 0.28, "mask_truncated_completions": True}),
    "scaled by the batch": ({"scale": "batch"}, {"scale_rewards": "batch"}),
    "GSPO": ({"normalize": "answers", "level": "answer"}, {"loss_type": "grpo", "importance_sampling_level": "sequence"}),
    "cooler": ({"kl": 0.1, "sampling": Sampling(max_new_tokens=LONGEST, temperature=0.7)}, {"beta": 0.1, "temperature": 0.7}),
}


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_grpo(name, flat, trainers, tokenizer, answers):
    knobs, settings = CASES[name]
    sampling = {"sampling": Sampling(max_new_tokens=LONGEST, temperature=1.0)}
    objective = GRPO([Length(3)], answers=GROUP, iterations=2, reference=Given(small_model(1)), **sampling | knobs)
    names = ["clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean"]
    # TRL leaves masked answers out of these means too, and counts answers where the ratio is theirs
    names = [] if name in ("DAPO", "GSPO") else names
    names += ["kl"] if "kl" in knobs else []
    assert_same(ours(objective, tokenizer, answers, flat), theirs(trainers["GRPO"], **DEFAULT | settings), names)


@pytest.mark.parametrize(
    ("knobs", "settings"), [({"kl": 0.0}, {"beta": 0.0}), ({"kl": 0.1}, {"beta": 0.1}), ({"whiten": True}, {"normalize_advantages": True})]
)
def test_rloo(knobs, settings, trainers, tokenizer, answers):
    sampling = Sampling(max_new_tokens=LONGEST, temperature=1.0)
    knobs = {"clip": 0.9, "kl": 0.1} | knobs  # an answer's ratio is soon far from 1
    objective = RLOO([Length(3)], answers=GROUP, sampling=sampling, iterations=2, reference=Given(small_model(1)), **knobs)
    settings = {"beta": 0.1, "normalize_advantages": False, "epsilon_low": 0.9, "epsilon_high": 0.9} | settings
    names = ["clip_ratio/region_mean", *(["kl"] if settings["beta"] else [])]
    assert_same(ours(objective, tokenizer, answers, True), theirs(trainers["RLOO"], **settings), names)
