"""What methods have in common that learn from the policy's own answers: let it answer, score the answers, train on them for some steps.

A rollout is what comes of the prompts of a window. It serves ``iterations`` x ``mini_batches`` optimizer steps, in each of which the
sampler gives the same prompts again; the step's answers take their place. The rollout is part of the checkpoint as long as steps on it are
to come, so that a run killed in between goes on as it would have.
"""

import json
import logging
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ltune.data.collate import Batch, Step
from ltune.data.rows import Prompt, Row
from ltune.errors import DataError, UsageError
from ltune.generation.answers import Answers
from ltune.generation.sampling import Sampling
from ltune.objectives.base import Actor, Beside, Loss, Objective
from ltune.objectives.policy import Policy
from ltune.objectives.reference import AdapterOff, Reference
from ltune.objectives.rewards import Answer, RewardFunction, names_of, scored, weighted
from ltune.objectives.rollout import Rollout, made_of, step_of
from ltune.objectives.rollout_facts import facts, line_of
from ltune.objectives.rollouts_file import RolloutsFile

EVALUATION = 2**31  # in place of the epoch, in the seeds of answers that are not trained on

log = logging.getLogger(__name__)


class Reinforcement(Objective):
    """Base of PPO, GRPO, RLOO.

    Args:
        rewards: Reward functions; their weighted sum is the reward.
        sampling: How the policy answers.
        group: Answers to each prompt.
        iterations: How often a rollout is gone through.
        mini_batches: Optimizer steps each time; the answers are dealt to them at random.
        reference: What the divergence is from; None: the model without its adapter.
    """

    rows: ClassVar[type[Row]] = Prompt
    any_order = False  # as when the rollout was scored: its first pass is on-policy to the last bit

    def __init__(
        self, rewards: list[RewardFunction], sampling: Sampling, group: int, iterations: int, mini_batches: int, reference: Reference | None
    ) -> None:
        if not rewards:
            raise UsageError(f"{type(self).__name__}: rewards is empty; name at least one, for example  - class_path: ExactMatch")
        if sampling.temperature == 0:
            raise UsageError(
                f"{type(self).__name__}: sampling.temperature is 0: the answers to a prompt would all be the same; 1.0 is usual"
            )
        for name, value in (("answers", group), ("iterations", iterations), ("mini_batches", mini_batches)):
            if value < 1:
                raise UsageError(f"{type(self).__name__}: {name} is 1 or more, got {value}")
        self.rewards, self.sampling, self.group = rewards, sampling, group
        self.names = names_of(rewards)
        self.temperature = sampling.temperature  # log-probabilities are those that answers are drawn with
        self.mini_batches, self.repeats = mini_batches, iterations * mini_batches
        self.reference = reference or AdapterOff()
        self.rollout: Rollout | None = None
        self.start: tuple[int, int] | None = None  # position of the first step on it
        self.turn = 0  # which of the steps on it is under way
        self.told: dict[str, float] = {}  # metrics of the rollout, told with each of its steps
        self.seconds = {"generate": 0.0, "score": 0.0, "train": 0.0}  # of the rollout; train: of the one before
        self.since: float | None = None
        self.file: RolloutsFile | None = None
        self.answers: Answers | None = None

    # -- what a method is -----------------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def refers(self) -> bool:
        """Whether the divergence from the reference counts."""

    @abstractmethod
    def read(self, policy: Policy, batch: Batch) -> dict[str, Tensor]:
        """What the policy that answered thinks of its answers, (N,) float32 each, without gradient; {}: it is not needed."""

    @abstractmethod
    def judge(self, rollout: Rollout) -> dict[str, float]:
        """Put into the rollout of all ranks what is trained on, advantages at least; metrics of it."""

    @abstractmethod
    def shares(self, rollout: Rollout, numbers: Tensor) -> Tensor:
        """What a token of each of these answers counts in the loss of a step on them, (len(numbers),)."""

    @abstractmethod
    def trained(self, policy: Policy, batch: Batch) -> Loss:
        """The loss of one micro-batch of answers."""

    # -- around the steps -----------------------------------------------------------------------------------------------------------

    def extend(self, model: nn.Module, load: Callable[..., Policy]) -> None:
        """Reward models are loaded, and the reference where it counts."""
        for reward in self.rewards:
            reward.extend(load, next(model.parameters()).device)
        if self.refers:
            self.reference.extend(model, load)

    def beside(self) -> list[Beside]:
        """Reward models, and what the reference loads where it counts."""
        models = [model for reward in self.rewards for model in reward.beside()]
        return models + (self.reference.beside() if self.refers else [])

    def collect(self, step: Step, actor: Actor) -> Step:
        """The answers whose turn it is, in place of their prompts; at the first turn they are made."""
        if step.origins is not None:  # a rehearsal's
            return step
        if step.position is None:
            return self._evaluated(step, actor)
        epoch, window = step.position
        self.turn = window % self.repeats
        start = (epoch, window - self.turn)
        if self.start != start or self.rollout is None:  # else memory ran out, and the step is tried again
            assert self.turn == 0, "a rollout that steps are to come on is in the checkpoint"
            self.rollout, self.start = self._rolled_out(step, actor), start
        return self._mini_batch(step, actor)

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        """Of answers that are trained on, the method's, with what is told of the rollout; of others, minus the mean reward."""
        if self._is_evaluated(batch):
            return self._evaluation(batch)
        loss, metrics = self.trained(policy, batch)
        part = batch.sequences / batch.window_rows
        told = {name: torch.tensor(value * part, device=loss.device) for name, value in self.told.items()}
        return Loss(loss, {**metrics, **told})

    def counted(self, batch: Batch) -> tuple[int, int]:
        """Answers."""
        return batch.sequences, batch.window_rows

    def longest(self, step: Step) -> Step:
        """As many answers as a step trains on, each as long as it may be."""
        prompts = [step.sequences[row][0] for row in step.rows for _ in range(self.group)]
        prompts.sort(key=len, reverse=True)
        prompts = prompts[: -(-len(prompts) // self.mini_batches)]
        rows = [row for row in step.rows for _ in range(self.group)][: len(prompts)]
        answer = [step.pad_id] * self.sampling.max_new_tokens
        rollout = made_of([np.asarray(one.input_ids).tolist() for one in prompts], [answer] * len(prompts), rows, set(), len(self.rewards))
        self._fill(rollout)
        tokens = int(rollout.answered.sum())
        return step_of(rollout, range(len(rollout)), step, self._size(step), (tokens, len(rollout)))

    # -- a rollout ------------------------------------------------------------------------------------------------------------------

    def _rolled_out(self, step: Step, actor: Actor) -> Rollout:
        self._train_ended(actor)
        assert step.position is not None
        mine, texts = self._answered(step, actor, step.position, self.group)
        with self._timed("score", actor):
            self._scored(mine, texts, actor)
            mine.of_tokens = self._read(mine, step, actor)
        everyone = actor.gather((mine.state(), [line_of(mine, texts[number], number, self.names) for number in range(len(mine))]))
        rollout = Rollout.joined([Rollout.of(state) for state, _ in everyone])
        self.told = {**facts(rollout, self.names, self.group), **self.judge(rollout)}
        self.told |= {f"seconds/{name}": seconds for name, seconds in self.seconds.items()}
        log.info("rollout: %s", ", ".join(f"{name} {self.told[name]:.3g}" for name in ("reward", "reward_std", "completions/mean_length")))
        self._write([line for _, lines in everyone for line in lines], actor)
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        self.since = time.monotonic()
        return rollout

    def _answered(self, step: Step, actor: Actor, place: tuple[int, int], group: int) -> tuple[Rollout, list[Answer]]:
        """This rank's, of ``group`` to each prompt, those to the same one side by side."""
        rows = [row for row in step.rows for _ in range(group)]
        prompts = [np.asarray(step.sequences[row][0].input_ids).tolist() for row in rows]
        seeds = [(actor.run_seed, *place, row, number % group) for number, row in enumerate(rows)]
        with self._timed("generate", actor):
            assert actor.answers is not None, "prompts are conversations"
            self.answers = self.answers or actor.answers(self.sampling, self._size(step), keep_stop=True)
            ids = self.answers.to(prompts, seeds)
        rollout = made_of(prompts, ids, rows, self.answers.stop_ids, len(self.rewards))
        notes = {row: json.loads(step.sequences[row][0].note) for row in step.rows}
        stop = self.answers.stop_ids
        texts = [actor.decode(one[:-1] if one[-1] in stop else one) for one in ids]
        return rollout, [_answer(notes[row], *one) for row, *one in zip(rows, prompts, ids, texts, strict=True)]

    def _scored(self, rollout: Rollout, answers: list[Answer], actor: Actor) -> None:
        """Rewards of this rank's answers. A function that fails on one rank ends all of them."""
        failed: DataError | None = None
        try:
            scores = scored(self.rewards, answers)
            rollout.scores = torch.tensor(scores, dtype=torch.float32).view(len(self.rewards), len(answers))
            rollout.rewards = torch.tensor(weighted(scores, self.rewards), dtype=torch.float32)
        except DataError as error:
            failed = error
        if any(actor.gather(failed is not None)):
            raise failed or DataError("a reward function failed on another rank, which says more.")

    def _read(self, rollout: Rollout, step: Step, actor: Actor) -> dict[str, Tensor]:
        """``read`` of all of this rank's answers."""
        tokens = int(rollout.answered.sum())
        answers = step_of(rollout, range(len(rollout)), step, self._size(step), (tokens, len(rollout)))
        found = [self.read(actor.policy, batch) for batch in actor.batches(answers)]
        return {name: torch.cat([one[name].float().cpu() for one in found]) for name in found[0]}

    def _mini_batch(self, step: Step, actor: Actor) -> Step:
        """This rank's part of the answers whose turn it is."""
        rollout = self.rollout
        assert rollout is not None
        assert self.start is not None
        order = np.arange(len(rollout))
        if self.mini_batches > 1:
            order = np.random.default_rng([actor.run_seed, *self.start, self.turn // self.mini_batches]).permutation(len(rollout))
        numbers = torch.from_numpy(np.array_split(order, self.mini_batches)[self.turn % self.mini_batches])
        rollout.of_answers["share"] = torch.zeros(len(rollout)).index_copy_(0, numbers, self.shares(rollout, numbers))
        window = int(rollout.answered[numbers].sum()), len(numbers)
        return step_of(rollout, numbers[actor.rank :: actor.world_size].tolist(), step, self._size(step), window)

    def _size(self, step: Step) -> int:
        """Answers in a micro-batch: those to as many prompts as it has."""
        return self.group * max((len(rows) for rows in step.micro_batches), default=1)

    def _fill(self, rollout: Rollout) -> None:
        """A rollout for a rehearsal: zeros where the method has its numbers."""
        tokens, names = int(rollout.answered.sum()), self.numbers
        rollout.of_answers = {name: torch.zeros(len(rollout)) for name in (*names[0], "share")}
        rollout.of_tokens = {name: torch.zeros(tokens) for name in names[1]}

    @property
    @abstractmethod
    def numbers(self) -> tuple[Sequence[str], Sequence[str]]:
        """The names of what a rollout has in training besides the share: of answers, of tokens."""

    # -- what is told ---------------------------------------------------------------------------------------------------------------

    def _write(self, lines: list[dict[str, Any]], actor: Actor) -> None:
        if actor.rank == 0 and actor.folder is not None:
            self.file = self.file or RolloutsFile(Path(actor.folder) / "rollouts.jsonl")
            self.file.append(actor.step, lines)

    @contextmanager
    def _timed(self, name: str, actor: Actor) -> Iterator[None]:
        begin = time.monotonic()
        yield
        actor.wait()
        self.seconds[name] += time.monotonic() - begin

    def _train_ended(self, actor: Actor) -> None:
        actor.wait()
        self.seconds["train"] = time.monotonic() - self.since if self.since is not None else 0.0

    # -- evaluation -----------------------------------------------------------------------------------------------------------------

    def _evaluated(self, step: Step, actor: Actor) -> Step:
        """An answer to each prompt, with its reward and what else is told of it."""
        kept = dict(self.seconds)
        rollout, texts = self._answered(step, actor, (EVALUATION, 0), 1)
        self._scored(rollout, texts, actor)
        self.seconds = kept
        scores = {f"score {number}": values for number, values in enumerate(rollout.scores)}
        rollout.of_answers = {"reward": rollout.rewards, "ended": rollout.ended.float(), "length": rollout.answered.float(), **scores}
        size = max(1, len(rollout))
        return step_of(rollout, range(len(rollout)), step, size, (step.window_tokens, step.window_rows))

    def _is_evaluated(self, batch: Batch) -> bool:
        return "share" not in batch.extras and (bool(batch.extras) or not torch.is_grad_enabled())

    def _evaluation(self, batch: Batch) -> Loss:
        whole = batch.window_rows
        reward = batch.extra("reward").nan_to_num(0.0).sum() / whole
        metrics = {
            "reward": reward,
            "completions/mean_length": batch.extra("length").sum() / whole,
            "completions/clipped_ratio": (1 - batch.extra("ended")).sum() / whole,
        }
        for number, name in enumerate(self.names):
            metrics[f"rewards/{name}/mean"] = batch.extra(f"score {number}").nan_to_num(0.0).sum() / whole
        return Loss(-reward, metrics)

    # -- checkpoints ----------------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The rollout, if steps on it are to come."""
        if self.rollout is None or self.start is None or self.turn + 1 == self.repeats:
            return {}
        return {"rollout": self.rollout.state(), "start": list(self.start), "told": dict(self.told)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with it."""
        if "rollout" in state:
            self.rollout, self.start, self.told = Rollout.of(state["rollout"]), tuple(state["start"]), dict(state["told"])


def _answer(note: dict[str, Any], prompt: list[int], ids: list[int], text: str) -> Answer:
    return Answer(note["place"], tuple(note["messages"]), text, tuple(ids), note["label"], note["columns"], tuple(prompt))
