"""Which setting a run begins with, for the memory that is free; and when it does not begin."""

import numpy as np
import pytest
import torch

from ltune.data.collate import Step
from ltune.data.rows import Sequence
from ltune.errors import UsageError
from ltune.memory import Memory
from ltune.models.fast.choice import least
from ltune.models.fast.memory import Setting, needed, on_host
from ltune.models.fast.model import FastModel
from ltune.models.load import load_model


@pytest.fixture(scope="module")
def fast():
    return FastModel(load_model("tiny", dtype=torch.float32).requires_grad_(False), torch.float32)


def alone(value):
    """A value of each rank, of which there is one."""
    return [value]


@pytest.fixture
def step():
    """Four rows of 32 tokens, in two micro-batches."""
    row = Sequence(np.zeros(32, np.int32), np.zeros(32, np.int32))
    return Step(((0, 1), (2, 3)), dict.fromkeys(range(4), (row,)), window_tokens=128, window_rows=4, position=(0, 0), flat=True, pad_id=0)


@pytest.fixture
def begin(fast, step, tmp_path, monkeypatch):
    """Choose with so many bytes free."""

    def chosen(wanted: str, free: float) -> Setting | None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(free), 2**40))
        memory = Memory(wanted)
        memory.fast = fast
        memory.settle(tmp_path / "memory.json", step, lambda: None, alone)
        return memory.setting

    return chosen


def test_all_the_room_there_is(begin):
    assert begin("auto", 2**40) == Setting(128, cached=False)


def test_a_run_that_cannot_fit_is_not_begun(begin, fast, tmp_path):
    room = needed(fast.shape(), least(32), window=128, longest=32)
    with pytest.raises(UsageError, match=r"training needs .* GiB of the GPU's memory(.|\n)*--model.memory least  tries it all the same"):
        begin("auto", room / 1.11)
    assert not (tmp_path / "memory.json").exists()


def test_ranks_of_a_host_share_its_memory(fast, step, monkeypatch):
    """With little of the GPU's memory, layers' inputs wait on the host: there is room for one rank's, or each one's of two hosts."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (35 * 10**6, 2**40))
    waiting = on_host(fast.shape(), least(32))
    monkeypatch.setattr("ltune.memory.free_memory", lambda: int(1.5 * waiting))
    assert Memory("auto")._chosen(fast, step, alone).offload
    assert Memory("auto")._chosen(fast, step, lambda mine: [mine, (*mine[:-1], "another")]).offload
    with pytest.raises(UsageError, match="of the host's memory"):
        Memory("auto")._chosen(fast, step, lambda mine: [mine, mine])


def test_told_otherwise_it_is_tried(begin):
    assert begin("speed", 0) == Setting(128, cached=False)


def test_told_to_take_as_little_as_can_be(fast, step, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 2**40))
    memory = Memory("least")
    assert memory._chosen(fast, step, alone).offload
