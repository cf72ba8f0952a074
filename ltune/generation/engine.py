"""Prompt ids in, answer ids out. The engine refuses to know text: decoding, templates and stop words are its callers' business."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ltune.generation.choose import chosen, uniforms
from ltune.generation.sampling import Sampling

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import GenerationConfig, PreTrainedModel


def generate(
    model: PreTrainedModel | PeftModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    stop_ids: set[int],
    pad_id: int,
    seeds: Sequence[Sequence[int]] | None = None,
    keep_stop: bool = False,
) -> list[list[int]]:
    """Answers to a batch of prompts of any lengths.

    Each answer has its new ids only, at most sampling.max_new_tokens of them, and ends before the first stop id. A greedy
    answer is the one that the prompt would get alone (up to rounding: prompts are padded on the left and masked).
    The model's mode and its own generation defaults are as before afterwards.

    Args:
        model: Bare or wrapped by PEFT.
        prompts: None empty.
        sampling: How tokens are chosen.
        stop_ids: What ends an answer.
        pad_id: Fills up shorter prompts.
        seeds: Of each prompt: its answer then depends on that, up to rounding, and not on the prompts beside it; None: torch's generator.
        keep_stop: The stop id stays, as an answer's last.
    """
    if not prompts:
        return []
    assert all(prompts), "a prompt without tokens"
    causal = _causal(model)
    length = max(map(len, prompts))  # L
    input_ids = torch.tensor([[pad_id] * (length - len(prompt)) + list(prompt) for prompt in prompts])  # (B, L)
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])  # (B, L)
    drawn = [] if seeds is None or not sampling.temperature else [_Drawn(sampling, seeds)]
    with torch.inference_mode(), _ready(causal):
        output = causal.generate(  # (B, L + new); position ids are counted from the mask
            input_ids.to(causal.device),
            attention_mask=mask.to(causal.device),
            generation_config=_generation_config(replace(sampling, temperature=0.0) if drawn else sampling, stop_ids, pad_id),
            logits_processor=drawn,
        )
    return [_until_stop(row, stop_ids, keep_stop) for row in output[:, length:].tolist()]


class _Drawn:
    """For transformers' greedy search: the only token left is the one that the row's own random numbers draw.

    Args:
        sampling: How tokens are chosen.
        seeds: Of each row.
    """

    def __init__(self, sampling: Sampling, seeds: Sequence[Sequence[int]]) -> None:
        self.sampling, self.step = sampling, 0
        self.numbers = [uniforms(seed, sampling.max_new_tokens) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        tokens = chosen(scores.float(), self.sampling, [row[self.step] for row in self.numbers])
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter(1, torch.tensor(tokens, device=scores.device)[:, None], 0.0)


def stream(
    model: PreTrainedModel | PeftModel, prompt: Sequence[int], sampling: Sampling, stop_ids: set[int], pad_id: int
) -> Generator[int, None, None]:
    """The answer to one prompt, an id at a time as it is made, without the stop id; the same ids as from generate().

    transformers' generate runs in a thread and hands its tokens over. Closing the iterator (or an exception where it is
    consumed, Ctrl-C among them) stops that thread before the next token.
    """
    from transformers.generation import StoppingCriteriaList

    assert prompt, "a prompt without tokens"
    causal = _causal(model)
    tokens = _TokenQueue()
    cancelled = threading.Event()
    device = causal.device.type
    autocast = torch.autocast(device, dtype=torch.get_autocast_dtype(device), enabled=torch.is_autocast_enabled(device))

    def work() -> None:
        input_ids = torch.tensor([list(prompt)], device=causal.device)  # (1, L)
        with torch.inference_mode(), autocast:  # a thread has its own modes, so the caller's are entered here
            causal.generate(
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                generation_config=_generation_config(sampling, stop_ids, pad_id),
                streamer=tokens,
                stopping_criteria=StoppingCriteriaList(
                    [lambda ids, scores, **_: torch.full((len(ids),), cancelled.is_set(), device=ids.device)]
                ),
            )

    with _ready(causal), ThreadPoolExecutor(max_workers=1, thread_name_prefix="ltune-stream") as pool:
        answer = pool.submit(work)
        answer.add_done_callback(lambda _: tokens.end())
        try:
            while (token := tokens.queue.get()) is not None and token not in stop_ids:
                yield token
        finally:
            cancelled.set()
        answer.result()  # raises here what went wrong there


class _TokenQueue:
    """A streamer of transformers: put() gets the prompt first, then each new id; end() may come more than once."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if self._prompt_seen:
            self.queue.put(int(value))
        self._prompt_seen = True

    def end(self) -> None:
        self.queue.put(None)


def _causal(model: PreTrainedModel | PeftModel) -> Any:
    """The transformers model itself (one with generate, which PreTrainedModel does not promise); an adapter's layers are inside it."""
    from transformers import PreTrainedModel

    return model if isinstance(model, PreTrainedModel) else model.get_base_model()


@contextmanager
def _ready(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode and blank generation defaults for a while.

    transformers fills whatever a call leaves open from the model folder's generation_config.json (temperature, suppressed
    tokens, cache options); an answer should be what `sampling` says and nothing else.
    """
    from transformers import GenerationConfig

    modes = [(module, module.training) for module in model.modules()]  # adapters may leave a mixture: put back each module's own
    defaults = model.generation_config
    model.generation_config = GenerationConfig()
    model.eval()
    try:
        yield
    finally:
        model.generation_config = defaults
        for module, mode in modes:
            module.training = mode


def _generation_config(sampling: Sampling, stop_ids: set[int], pad_id: int) -> GenerationConfig:
    from transformers import GenerationConfig

    return GenerationConfig(
        **sampling.arguments(),
        use_cache=True,  # training switches it off in model.config; without it every token reads the whole prompt again
        eos_token_id=sorted(stop_ids) or None,
        pad_token_id=pad_id,
    )


def _until_stop(ids: list[int], stop_ids: set[int], keep_stop: bool = False) -> list[int]:
    end = next((position for position, token in enumerate(ids) if token in stop_ids), len(ids))
    return ids[: end + keep_stop]
