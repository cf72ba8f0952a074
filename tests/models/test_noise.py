"""NEFTune's noise: its size by the row's own length, the same in both layouts, the same again from the same place."""

import pytest
import torch

from ltune.models.noise import embedding_noise, with_noise
from ltune.randomness import seed_step

STARTS = torch.tensor([0, 4, 5, 30], dtype=torch.int32)
WIDTH = 64


def test_each_rows_noise_has_the_papers_size():
    noise = embedding_noise(STARTS, 30, WIDTH, alpha=5.0)
    for begin, end in ((0, 4), (4, 5), (5, 30)):
        most = 5.0 / ((end - begin) * WIDTH) ** 0.5
        part = noise[begin:end]
        assert part.abs().max() <= most
        assert part.abs().max() > 0.9 * most
        # of uniform numbers in (-1, 1) the mean of squares is a third, so the noise on a row has the norm alpha / sqrt(3)
        assert float(part.square().sum().sqrt()) == pytest.approx(5.0 / 3**0.5, rel=0.1)


def test_it_is_a_function_of_the_place():
    def drawn(*place):
        seed_step(42, *place)
        return embedding_noise(STARTS, 30, WIDTH, alpha=5.0)

    assert torch.equal(drawn(0, 3, 0, 0), drawn(0, 3, 0, 0))
    assert not torch.equal(drawn(0, 3, 0, 0), drawn(0, 4, 0, 0))


def test_both_layouts_get_the_same_noise():
    embedded = torch.randn(30, WIDTH)
    seed_step(1)
    flat = with_noise(embedded[None], STARTS, None, alpha=5.0)[0]
    mask = torch.tensor([[1] * length + [0] * (25 - length) for length in (4, 1, 25)])
    padded = torch.zeros(3, 25, WIDTH)
    padded[mask.bool()] = embedded
    seed_step(1)
    noisy = with_noise(padded, STARTS, mask, alpha=5.0)
    assert torch.equal(noisy[mask.bool()], flat)
    assert not noisy[~mask.bool()].any()
    assert with_noise(embedded.bfloat16(), STARTS, None, alpha=5.0).dtype is torch.bfloat16
