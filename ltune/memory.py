"""Keeps a run inside the GPU's memory: chooses how a step is computed before the first one, and gives something up when memory runs out.

The choice is written into the run folder and into each checkpoint, because micro-batches of another size round differently: a resumed
run takes the recorded one.
"""

import gc
import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from platform import node
from typing import Any, Literal

import torch

from ltune.checkpoints.publish import write_atomically
from ltune.data.collate import Step
from ltune.errors import ResourceError, UsageError
from ltune.models.fast.choice import choose, least, quickest, refusal, smaller
from ltune.models.fast.layer import Keep
from ltune.models.fast.memory import Setting
from ltune.models.fast.model import FastModel
from ltune.system import free_memory

Wanted = Literal["auto", "speed", "least"]
Gather = Callable[[Any], list[Any]]

log = logging.getLogger(__name__)


def in_one_piece() -> None:
    """Have torch take the GPU's memory as one piece that grows, unless the user asks for something else. Call it before the first use.

    In the pieces that it takes otherwise, a step that needs 128 of 139 GiB does not fit (measured).
    """
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


class Memory:
    """The setting in force.

    Args:
        wanted: auto: the quickest setting that fits; speed: the quickest; least: the one that needs the least memory.
        again: Whether activations are to be computed again in the backward pass.
    """

    def __init__(self, wanted: Wanted = "auto", again: bool = False) -> None:
        self.wanted = wanted
        self.again = again
        self.fast: FastModel | None = None
        self.setting: Setting | None = None  # None: micro-batches as configured, nothing to trade

    @property
    def most_tokens(self) -> int | None:
        """Of a micro-batch; None: as configured."""
        return self.setting.tokens if self.setting else None

    def likely(self, fast: FastModel, tokens: int) -> Setting:
        """What the setting will probably be, with so many tokens in the largest step; the free memory has the last word."""
        setting = least(tokens) if self.wanted == "least" else quickest(fast.shape(), tokens, again=self.again)
        return replace(setting, offload=False)  # nothing leaves the meta device

    # -- before the first step --------------------------------------------------------------------------------------------------------

    def settle(self, file: Path, step: Step, rehearse: Callable[[], None], gather: Gather) -> None:
        """Take the recorded setting or choose one, and try it on the largest step, so that memory runs out now or not at all. All ranks
        take the same: the checkpoint has one.

        Args:
            file: Where the choice is recorded.
            step: The one with the most tokens, on any rank.
            rehearse: Forward and backward of that step, without a trace.
            gather: A value of each rank, in their order.
        """
        if self.fast is not None and self.setting is None:
            self.setting = gather(recorded(file))[0] or self._chosen(self.fast, step, gather)
        if self.fast is not None and self.setting is not None:
            self.fast.adopt(self.setting)
        while problem := next(filter(None, gather(tried(rehearse))), None):
            self.give_up_some(step, problem)
        if self.setting is not None:
            log.info("memory: %s", self.setting)
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(file, json.dumps(plain(self.setting), indent=1) + "\n")

    def _chosen(self, fast: FastModel, step: Step, gather: Gather) -> Setting:
        longest = max(len(sequence) for sequences in step.sequences.values() for sequence in sequences)
        if self.wanted == "least":
            return least(step.tokens)
        if self.wanted == "speed":
            return quickest(fast.shape(), step.tokens, again=self.again)
        taken = torch.cuda.memory_allocated()
        each = gather((torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - taken, taken, free_memory(), node()))
        free, loaded, hosts, names = (list(values) for values in zip(*each, strict=True))
        shares = [one // names.count(name) for one, name in zip(hosts, names, strict=True) if one is not None]
        host = min(shares, default=None)
        setting = choose(fast.shape(), min(free), step.tokens, longest, again=self.again, host=host)
        if reason := refusal(fast.shape(), setting, min(free), min(loaded), step.tokens, longest, host):
            raise UsageError(reason)
        return setting

    # -- when memory runs out -----------------------------------------------------------------------------------------------------------

    def give_up_some(self, step: Step, problem: str) -> None:
        """Go on with less.

        Args:
            step: Under which memory ran out.
            problem: What torch said.

        Raises:
            ResourceError: Nothing is left to give up.
        """
        if self.fast is not None:
            self.fast.shelf.forget()
        gc.collect()
        torch.cuda.empty_cache()
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()  # train/peak_memory_gib is of what is trained, not of what was tried
        batches = step.batches(self.most_tokens)
        largest = max((batch.input_ids.size for batch in batches if len(batch.rows) > 1), default=0)
        before = self.setting
        if self.fast is not None and before is not None:
            self.setting = smaller(before, largest)
            if self.setting is not None:
                self.fast.adopt(self.setting)
        elif largest:
            self.setting = Setting(largest // 2, cached=False)
        else:
            self.setting = None
        if self.setting is None:
            self.setting = before
            raise ResourceError(
                f"the GPU's memory is full, and nothing is left to give up: {problem.splitlines()[0][:300]}\n"
                "Lower data.max_length, set  model.quantize: NF4 , or train fewer weights (model.adapter: LoRA)."
            )
        parts = len(step.batches(self.setting.tokens))
        log.warning(
            "the GPU's memory was full; going on with %s (%d micro-batches in this step, the same rows and loss)", self.setting, parts
        )

    # -- checkpoints ----------------------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any] | None:
        """For a checkpoint."""
        return plain(self.setting) if self.setting else None

    def restore(self, state: dict[str, Any] | None) -> None:
        """Of a checkpoint."""
        self.setting = setting_of(state) if state else None


def tried(work: Callable[[], None]) -> str | None:
    """What torch says if memory runs out."""
    try:
        work()
    except torch.OutOfMemoryError as error:
        return str(error) or "out of memory"
    return None


def recorded(file: Path) -> Setting | None:
    """The setting that the run began with."""
    return setting_of(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None


def plain(setting: Setting) -> dict[str, Any]:
    """As plain data."""
    return {**asdict(setting), "keep": int(setting.keep)}


def setting_of(state: dict[str, Any]) -> Setting:
    """From plain data."""
    return Setting(**{**state, "keep": Keep(state["keep"])})
