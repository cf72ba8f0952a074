import json

import numpy as np
import torch

from ltune.data.collate import Step
from ltune.data.rows import IGNORE, Sequence
from ltune.objectives.rollout import Rollout, made_of, step_of
from ltune.objectives.rollouts_file import RolloutsFile

LIKE = Step(((0, 1),), {row: (Sequence([1], [IGNORE]),) for row in (0, 1)}, 0, 2, (3, 4), True, 0)


def rollout(first_row=0):
    made = made_of([[5, 6], [5, 6], [7]], [[8, 2], [9], [3, 4, 2]], [first_row, first_row, first_row + 1], {2}, functions=1)
    made.of_answers["advantages"] = torch.tensor([1.0, -1.0, 0.5])
    made.of_tokens["old"] = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    return made


def test_answers_are_what_is_trained_with_their_part_of_what_is_known():
    made = rollout()
    assert made.ended.tolist() == [True, False, True]
    sequence = made.sequence(2)
    assert sequence.input_ids.tolist() == [7, 3, 4, 2]
    assert sequence.labels.tolist() == [IGNORE, 3, 4, 2]
    np.testing.assert_allclose(sequence.extras["old"], [0.4, 0.5, 0.6])
    assert float(sequence.extras["advantages"]) == 0.5


def test_a_step_of_some_answers_names_the_rows_that_they_came_from():
    step = step_of(rollout(first_row=10), [2, 0], LIKE, size=1, window=(5, 2))
    batches = [batch.tensors() for batch in step.batches()]
    assert [batch.rows for batch in batches] == [(11,), (10,)]
    assert [batch.targets.tolist() for batch in batches] == [[3, 4, 2], [8, 2]]
    assert batches[1].extra("old").tolist() == [np.float32(0.1), np.float32(0.2)]
    assert (step.position, step.window_tokens, step.window_rows) == ((3, 4), 5, 2)


def test_ranks_rollouts_are_joined_and_a_state_is_all_of_it():
    joined = Rollout.joined([rollout(), rollout(first_row=5)])
    again = Rollout.of(joined.state())
    assert len(again) == 6
    assert again.rows.tolist() == [0, 0, 1, 5, 5, 6]
    assert again.sequence(5).input_ids.tolist() == [7, 3, 4, 2]
    assert again.scores.shape == (1, 6)
    nothing = made_of([], [], [], {2}, functions=1)
    nothing.of_answers["advantages"], nothing.of_tokens["old"] = torch.zeros(0), torch.zeros(0)
    assert len(Rollout.joined([nothing, rollout()])) == 3


def test_the_file_goes_on_from_the_step_that_a_killed_run_goes_on_from(tmp_path):
    def steps():
        return [json.loads(line)["step"] for line in (tmp_path / "rollouts.jsonl").read_text().splitlines()]

    first = RolloutsFile(tmp_path / "rollouts.jsonl")
    first.append(1, [{"answer": "a", "reward": float("nan")}])
    first.append(3, [{"answer": "b"}])
    first.append(5, [{"answer": "c"}])
    with (tmp_path / "rollouts.jsonl").open("a") as file:
        file.write('{"step": 7, "ans')  # torn
    again = RolloutsFile(tmp_path / "rollouts.jsonl")
    again.append(3, [{"answer": "b"}, {"answer": "b"}])
    again.append(5, [{"answer": "c"}])
    assert steps() == [1, 3, 3, 5]
    assert json.loads((tmp_path / "rollouts.jsonl").read_text().splitlines()[0])["reward"] is None
