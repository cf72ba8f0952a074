import pytest

from ltune.errors import UsageError
from ltune.generation.sampling import Sampling


def test_greedy_is_the_default_and_names_no_knob_of_sampling():
    assert Sampling().arguments() == {"max_new_tokens": 256, "do_sample": False, "repetition_penalty": 1.0}


def test_sampling_spells_out_every_knob():
    assert Sampling(max_new_tokens=5, temperature=0.7, top_p=0.9).arguments() == {
        "max_new_tokens": 5,
        "do_sample": True,
        "repetition_penalty": 1.0,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 0,
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("repetition_penalty", 0.0),
    ],
)
def test_wrong_value_is_named(name, value):
    with pytest.raises(UsageError, match=f"{name} must be .*, got {value}"):
        Sampling(**{name: value})


def test_all_wrong_values_at_once_in_one_line():
    with pytest.raises(UsageError) as caught:
        Sampling(max_new_tokens=0, top_k=-3)
    assert str(caught.value) == "sampling: max_new_tokens must be at least 1, got 0; top_k must be 0 (off) or more, got -3"
