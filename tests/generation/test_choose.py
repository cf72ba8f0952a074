import pytest
import torch
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ltune.generation import choose
from ltune.generation.choose import Repeated, chosen, uniforms
from ltune.generation.sampling import Sampling


def logits(rows=1, seed=0):
    return 2 * torch.randn(rows, 30, generator=torch.Generator().manual_seed(seed))


def test_greedy_takes_the_likeliest():
    scores = logits(5)
    assert chosen(scores, Sampling(), [0.0] * 5) == scores.argmax(-1).tolist()


@pytest.mark.parametrize("knobs", [{}, {"temperature": 0.6}, {"top_k": 5}, {"top_p": 0.7}, {"top_k": 8, "top_p": 0.5, "temperature": 1.3}])
def test_draws_have_the_probabilities_of_transformers(knobs):
    """The share of evenly spread numbers that leads to a token is its probability."""
    knobs = {"temperature": 1.0} | knobs
    scores = logits()
    expected = TemperatureLogitsWarper(knobs["temperature"])(None, scores) if knobs["temperature"] != 1 else scores
    if "top_k" in knobs:
        expected = TopKLogitsWarper(knobs["top_k"])(None, expected)
    if "top_p" in knobs:
        expected = TopPLogitsWarper(knobs["top_p"])(None, expected)
    count = 20_000
    numbers = [(number + 0.5) / count for number in range(count)]
    drawn = chosen(scores.expand(count, -1), Sampling(**knobs), numbers)
    shares = torch.bincount(torch.tensor(drawn), minlength=30) / count
    torch.testing.assert_close(shares, expected.softmax(-1)[0], atol=1e-3, rtol=0)


def test_the_ends_of_the_numbers_lead_to_tokens_that_are_left():
    scores = torch.tensor([[-torch.inf, 1.0, -torch.inf, 0.0, -torch.inf]])
    for number in (0.0, 1 - 2**-24):
        for knobs in ({}, {"top_p": 0.99}, {"top_k": 2}):
            assert chosen(scores, Sampling(temperature=1.0, **knobs), [number])[0] in (1, 3)
    assert chosen(scores, Sampling(temperature=1.0, top_p=1e-6), [0.0]) == [1]


def test_some_rows_at_a_time_are_the_same(monkeypatch):
    scores, numbers = logits(7), uniforms((1, 2), 7)
    whole = chosen(scores, Sampling(temperature=1.0, top_p=0.9), numbers)
    monkeypatch.setattr(choose, "AT_ONCE", 60)
    assert chosen(scores, Sampling(temperature=1.0, top_p=0.9), numbers) == whole


def test_numbers_depend_on_the_seed_alone():
    assert uniforms((42, 7), 5) == uniforms((42, 7), 9)[:5]
    assert len({tuple(uniforms(seed, 5)) for seed in [(42, 7), (42, 8), (43, 7), (7, 42)]}) == 4
    assert all(0 <= number < 1 for number in uniforms((0,), 1000))


def test_tokens_of_the_row_become_less_likely_as_in_transformers():
    scores = logits(3)
    repeated = Repeated(4, 1.5)
    repeated.begin([3], [[29]], scores)  # an earlier row of a slot leaves no trace
    repeated.begin([3, 0], [[1, 2, 2], [5]], scores)
    repeated.begin([1], [[7, 8]], scores)
    repeated.add([0, 3], [6, 9])
    rows = [[5, 6], [7, 8], [1, 2, 2, 9]]
    expected = torch.cat([RepetitionPenaltyLogitsProcessor(1.5)(torch.tensor([row]), scores[[n]]) for n, row in enumerate(rows)])
    torch.testing.assert_close(repeated.penalized([0, 1, 3], scores), expected)
