"""What the module lets an objective use besides the batch: the policy, what answers prompts, and the other ranks."""

from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from ltune.generation.answers import Answers
from ltune.generation.sampling import Sampling
from ltune.models.fast.decode import decoder_of
from ltune.objectives.base import Actor


def actor_of(module: Any, device: torch.device) -> Actor:
    """For a module whose model is loaded.

    Args:
        module: The FineTuner above this file, with its trainer and data.
        device: Of the model.
    """
    return Actor(
        module.policy,
        device,
        run_seed=module.seed,
        rank=module.global_rank,
        world_size=module.trainer.world_size,
        folder=module.trainer.default_root_dir if module.trainer.state.fn == "fit" else None,
        answers=partial(answers_of, module),
        decode=lambda ids: str(module.tokenizer.decode(list(ids), skip_special_tokens=True)),
        gather=gather,
    )


def answers_of(module: Any, sampling: Sampling, at_once: int, keep_stop: bool = False) -> Answers:
    """What answers prompts with the weights in training.

    Args:
        module: A FineTuner with its model loaded.
        sampling: How.
        at_once: Prompts, where transformers' generate has to do.
        keep_stop: What ended an answer stays, as its last token.
    """
    template = module.data.template
    assert template is not None, "prompts are conversations, and those have one"
    decoder = decoder_of(module.memory.fast, module.generation_tokens)
    stop_ids, pad_id = template.stop_ids(module.tokenizer), module.tokenizer.pad_token_id
    return Answers(module.model, decoder, sampling, stop_ids, pad_id, at_once, keep_stop)


def gather(value: Any) -> list[Any]:
    """The value of each rank, in their order."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
