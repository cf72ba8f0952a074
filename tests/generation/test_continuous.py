"""The loop by itself: a decoder that is a formula, so that each answer is known without a model."""

import random
import time

import pytest
import torch

from ltune.generation import continuous
from ltune.generation.answers import Answers
from ltune.generation.continuous import answer_all
from ltune.generation.sampling import Sampling

VOCABULARY = 50


class Formula:
    """What follows is a function of all tokens of the row, read back from where they were written; cells are not shared by rows in use."""

    def __init__(self, most):
        self.most = most
        self.steps, self.prefills, self.rows = 0, 0, 0
        self.cells = None

    def open(self, wanted, longest, rows):
        assert self.cells is None
        self.longest, self.limit = longest, rows
        self.cells = [None] * max(longest, min(wanted, self.most))
        return len(self.cells)

    def close(self):
        self.cells = None

    def prefill(self, prompts, starts):
        self.prefills += 1
        for prompt, start in zip(prompts, starts, strict=True):
            self.cells[start : start + len(prompt)] = prompt
        return torch.stack([self._logits(prompt) for prompt in prompts])

    def step(self, tokens, starts, lengths):
        self.steps += 1
        self.rows = max(self.rows, len(tokens))
        assert len(tokens) <= self.limit
        assert max(lengths) < self.longest
        for token, start, length in zip(tokens, starts, lengths, strict=True):
            self.cells[start + length] = token
        return torch.stack([self._logits(self.cells[start : start + length + 1]) for start, length in zip(starts, lengths, strict=True)])

    def _logits(self, tokens):
        generator = torch.Generator().manual_seed(hash(tuple(tokens)) % 2**31)
        return 2 * torch.randn(VOCABULARY, generator=generator)


def prompts(count, longest=30, seed=0):
    source = random.Random(seed)
    return [[source.randrange(VOCABULARY) for _ in range(source.randint(1, longest))] for _ in range(count)]


def by_hand(prompt, count, stop_ids):
    answer = []
    while len(answer) < count:
        token = int(Formula(0)._logits([*prompt, *answer]).argmax())
        if token in stop_ids:
            break
        answer.append(token)
    return answer


@pytest.mark.parametrize("most", [1, 60, 200, 10**6])
@pytest.mark.parametrize("stop_ids", [set(), {3, 4, 5}, set(range(25))])
def test_answers_are_in_the_order_of_the_prompts_whatever_fits(most, stop_ids):
    asked = prompts(40)
    decoder = Formula(most)
    answers = answer_all(decoder, asked, Sampling(max_new_tokens=9), stop_ids=stop_ids)
    assert answers == [by_hand(prompt, 9, stop_ids) for prompt in asked]
    assert decoder.cells is None


def test_the_stop_id_stays_if_asked_for():
    asked, stop_ids = prompts(40), set(range(25))
    kept = answer_all(Formula(200), asked, Sampling(max_new_tokens=9), stop_ids=stop_ids, keep_stop=True)
    for prompt, answer in zip(asked, kept, strict=True):
        before = by_hand(prompt, 9, stop_ids)
        assert answer[: len(before)] == before
        assert len(answer) == min(len(before) + 1, 9)
        assert len(answer) == len(before) or answer[-1] in stop_ids


def test_what_fits_goes_at_once_and_prompts_are_read_together():
    decoder = Formula(10**6)
    answer_all(decoder, prompts(40), Sampling(max_new_tokens=9), stop_ids=set())
    assert (decoder.steps, decoder.prefills, decoder.rows) == (8, 1, 40)


def test_prompts_are_read_a_few_thousand_tokens_at_a_time(monkeypatch):
    monkeypatch.setattr(continuous, "READ", 50)
    decoder = Formula(10**6)
    asked = [[1] * length for length in (60, 30, 20, 10, 10, 5)]
    assert answer_all(decoder, asked, Sampling(max_new_tokens=2), stop_ids=set()) == [by_hand(prompt, 2, set()) for prompt in asked]
    assert decoder.prefills == 3  # 60 | 30 + 20 | 10 + 10 + 5


def test_rows_at_once_are_limited(monkeypatch):
    monkeypatch.setattr(continuous, "ROWS", 8)
    decoder = Formula(10**6)
    asked = prompts(20)
    assert answer_all(decoder, asked, Sampling(max_new_tokens=5), stop_ids={1}) == [by_hand(prompt, 5, {1}) for prompt in asked]
    assert decoder.rows <= 8


def test_places_that_become_free_are_taken_again():
    """Stop ids end answers at unequal times; steps stay far below those of whole batches one after another."""
    asked, stop_ids = prompts(200), set(range(5))
    decoder = Formula(16 * 130)
    answers = answer_all(decoder, asked, Sampling(max_new_tokens=100), stop_ids=stop_ids)
    assert answers == [by_hand(prompt, 100, stop_ids) for prompt in asked]
    tokens = sum(map(len, answers))
    assert decoder.steps < 2 * tokens / 16 + 100


def test_one_new_token_needs_no_step():
    decoder = Formula(100)
    assert answer_all(decoder, [[1, 2]], Sampling(max_new_tokens=1), stop_ids=set()) == [by_hand([1, 2], 1, set())]
    assert decoder.steps == 0
    assert answer_all(decoder, [], Sampling(), stop_ids=set()) == []


def test_a_drawn_answer_depends_on_its_seed_and_not_on_the_rows_beside_it():
    asked = prompts(12)
    sampling = Sampling(max_new_tokens=9, temperature=1.0, top_p=0.9)
    seeds = [(7, number) for number in range(12)]
    together = answer_all(Formula(10**6), asked, sampling, stop_ids=set(), seeds=seeds)
    assert answer_all(Formula(60), asked, sampling, stop_ids=set(), seeds=seeds) == together
    alone = [
        answer_all(Formula(60), [prompt], sampling, stop_ids=set(), seeds=[seed])[0] for prompt, seed in zip(asked, seeds, strict=True)
    ]
    assert alone == together
    others = answer_all(Formula(60), asked, sampling, stop_ids=set(), seeds=[(8, number) for number in range(12)])
    assert others != together
    torch.manual_seed(1)
    first = answer_all(Formula(60), asked, sampling, stop_ids=set())
    torch.manual_seed(1)
    assert answer_all(Formula(60), asked, sampling, stop_ids=set()) == first


def test_a_failure_gives_the_memory_back():
    decoder = Formula(100)
    decoder.step = lambda *arguments: 1 / 0
    with pytest.raises(ZeroDivisionError):
        answer_all(decoder, [[1]], Sampling(), stop_ids=set())
    assert decoder.cells is None


def test_progress_is_said_now_and_then(monkeypatch, caplog):
    monkeypatch.setattr(continuous, "SAY", 0.0)
    with caplog.at_level("INFO"):
        answer_all(Formula(100), prompts(3), Sampling(max_new_tokens=3), stop_ids=set())
    assert caplog.messages == [*["0 of 3 prompts answered, 3 under way"] * 2, "3 of 3 prompts answered, 0 under way"]


def test_tokens_and_seconds_are_counted():
    answers = Answers(None, Formula(1000), Sampling(max_new_tokens=5), set(), 0, 2)
    begin = time.monotonic()
    answers.to(prompts(3), seeds=[(0, 0), (0, 1), (0, 2)])
    answers.to(prompts(3), seeds=[(0, 0), (0, 1), (0, 2)])
    assert answers.tokens == 30
    assert 0 < answers.seconds <= time.monotonic() - begin
    assert str(answers).startswith("generated 30 tokens in ")
