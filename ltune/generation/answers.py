"""Answers by the quickest way there is: through a decoder, or batch by batch through transformers' generate; counted and timed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ltune.generation.continuous import Decoder, answer_all
from ltune.generation.engine import generate
from ltune.generation.sampling import Sampling

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class Answers:
    """Answers prompts.

    Args:
        model: For transformers' generate.
        decoder: The quick way; None: transformers' generate.
        sampling: How tokens are chosen.
        stop_ids: What ends an answer.
        pad_id: Fills up prompts of unequal length, for transformers' generate.
        batch_size: Prompts at once, for transformers' generate.
        keep_stop: What ended an answer stays, as its last token.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        decoder: Decoder | None,
        sampling: Sampling,
        stop_ids: set[int],
        pad_id: int,
        batch_size: int,
        keep_stop: bool = False,
    ) -> None:
        self.model, self.decoder, self.sampling = model, decoder, sampling
        self.stop_ids, self.pad_id, self.batch_size, self.keep_stop = stop_ids, pad_id, batch_size, keep_stop
        self.tokens = 0
        self.seconds = 0.0

    def to(self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]]) -> list[list[int]]:
        """The answers, in the order of the prompts.

        Args:
            prompts: Of any lengths, none empty.
            seeds: Of each prompt.
        """
        begin = time.monotonic()
        if self.decoder is not None:
            answers = answer_all(self.decoder, prompts, self.sampling, stop_ids=self.stop_ids, seeds=seeds, keep_stop=self.keep_stop)
        else:
            answers = self._in_batches(prompts, seeds)
        self.seconds += time.monotonic() - begin
        self.tokens += sum(map(len, answers))
        return answers

    def _in_batches(self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]]) -> list[list[int]]:
        """Prompts of about the same length beside each other, so that little is padded."""
        order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
        answers: list[list[int]] = [[] for _ in prompts]
        for begin in range(0, len(order), self.batch_size):
            numbers = order[begin : begin + self.batch_size]
            found = generate(
                self.model,
                [prompts[number] for number in numbers],
                self.sampling,
                stop_ids=self.stop_ids,
                pad_id=self.pad_id,
                seeds=[seeds[number] for number in numbers],
                keep_stop=self.keep_stop,
            )
            for number, answer in zip(numbers, found, strict=True):
                answers[number] = answer
        return answers

    def __str__(self) -> str:
        return f"generated {self.tokens} tokens in {self.seconds:.2f} s ({self.tokens / max(self.seconds, 1e-9):.0f} tokens/s)"
