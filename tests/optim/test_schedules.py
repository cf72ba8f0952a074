"""The learning rates are those of the reference runs."""

import json

import pytest

from ltune.errors import UsageError
from ltune.optim.schedules import Constant, Cosine, Linear


def test_cosine_gives_the_walkthroughs_learning_rates(shared):
    log = json.loads((shared / "golden" / "walkthrough_log.json").read_text())
    schedule = Cosine(warmup=0.1)
    assert schedule.warmup_steps(log["total_steps"]) == log["warmup_steps"]
    for row in log["log"]:
        assert 5e-5 * schedule.factor(row["step"] - 1, log["total_steps"]) == pytest.approx(row["lr"], abs=1e-9)
    assert len(log["log"]) == 44


def test_warmup_counts_from_zero_and_takes_steps_or_a_share():
    assert [Linear(warmup=4).factor(step, 12) for step in (0, 1, 4, 8, 12)] == [0, 0.25, 1, 0.5, 0]
    assert Constant(warmup=2).factor(1, 10) == 0.5
    assert Constant().factor(0, 10) == 1
    assert Cosine(warmup=0.1).warmup_steps(221) == 23


def test_a_warmup_that_is_neither_steps_nor_a_share_is_refused():
    with pytest.raises(UsageError, match="whole number of steps or a share"):
        Cosine(warmup=1.5)
