"""What is told of a rollout: metrics under TRL's names, and an answer's line in rollouts.jsonl."""

from collections.abc import Sequence
from typing import Any

from ltune.objectives.advantages import all_equal, deviation
from ltune.objectives.rewards import Answer
from ltune.objectives.rollout import Rollout


def facts(rollout: Rollout, names: Sequence[str], group: int) -> dict[str, float]:
    """Means and deviations over all answers.

    Args:
        rollout: Scored.
        names: Of the reward functions.
        group: Answers to each prompt.
    """
    known = rollout.rewards[~rollout.rewards.isnan()]
    lengths, ended = rollout.answered.float(), rollout.ended
    told = {
        "reward": float(known.mean()) if len(known) else 0.0,
        "reward_std": float(deviation(rollout.rewards[None].double())),
        "frac_reward_zero_std": float(all_equal(rollout.rewards.view(-1, group)).float().mean()),
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float((~ended).float().mean()),
    }
    for name, scores in zip(names, rollout.scores.double(), strict=True):
        said = scores[~scores.isnan()]
        told[f"rewards/{name}/mean"] = float(said.mean()) if len(said) else 0.0
        told[f"rewards/{name}/std"] = float(deviation(scores[None]))
    return told


def line_of(rollout: Rollout, answer: Answer, number: int, names: Sequence[str]) -> dict[str, Any]:
    """One answer, of rollouts.jsonl."""
    return {
        "row": answer.place,
        "prompt": answer.prompt[-1]["content"] if answer.prompt else "",
        "answer": answer.text,
        "label": answer.label,
        "reward": float(rollout.rewards[number]),
        "rewards": dict(zip(names, rollout.scores[:, number].tolist(), strict=True)),
        "tokens": int(rollout.answered[number]),
        "ended": bool(rollout.ended[number]),
    }
