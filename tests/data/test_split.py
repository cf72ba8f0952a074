"""Which rows train and which validate."""

import json

import pytest

from ltune.data.encode import Encoder
from ltune.data.mixing import Concatenate, Interleave
from ltune.data.prepared import prepare
from ltune.data.rows import Chat
from ltune.data.split import Split, by_dataset, mixed, short_names, split
from ltune.data.templates import load_template
from ltune.errors import UsageError
from ltune.models.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Rows 0 to 4 of a, 5 to 7 of b."""
    folder, tokenizer = tmp_path_factory.mktemp("rows"), load_tokenizer("tiny")
    for name, rows in (("a", 5), ("b", 3)):
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps({"instruction": "hi", "output": "x" * n}) + "\n" for n in range(1, rows + 1))
        )
    encoder = Encoder(load_template(None, tokenizer), tokenizer, max_length=100)
    return prepare(["a.jsonl", "b.jsonl"], folder, rows=Chat, encoder=encoder, cache=folder / "cache", processes=1)


def test_held_out_rows_are_drawn_by_the_seed(prepared):
    train, val = split(prepared, 3, seed=1)
    assert sorted([*train.indices, *val.indices]) == list(range(8))
    assert len(val) == 3
    assert split(prepared, 3, seed=1)[1].indices.tolist() == val.indices.tolist()
    assert len(split(prepared, 0.25, seed=1)[1]) == 2
    assert split(prepared, 0, seed=1)[1] is None
    with pytest.raises(UsageError, match="none would be left to train on"):
        split(prepared, 8, seed=1)


def test_the_rows_of_each_data_set(prepared):
    assert {name: part.indices.tolist() for name, part in by_dataset(Split.whole(prepared)).items()} == {
        "a.jsonl": [0, 1, 2, 3, 4],
        "b.jsonl": [5, 6, 7],
    }
    train, val = split(prepared, 3, seed=1)
    for rows in (train, val):
        parts = by_dataset(rows)
        assert [index for part in parts.values() for index in part.indices] == rows.indices.tolist()
        assert all(index < 5 for index in parts["a.jsonl"].indices)
        assert all(index >= 5 for index in parts["b.jsonl"].indices)


def test_a_mix_repeats_and_leaves_out_rows_with_their_counts(prepared):
    rows = mixed(Split.whole(prepared), Interleave("under"), [1.0, 1.0], seed=1)
    assert rows.indices.tolist() == [0, 5, 1, 6, 2, 7]
    assert rows.trained.tolist() == [int(prepared.trained[index]) for index in rows.indices]
    assert rows[3][0].input_ids.tolist() == prepared[6][0].input_ids.tolist()
    assert rows.place(3) == "b.jsonl:2"
    assert mixed(Split.whole(prepared), Concatenate(), [1.0, 1.0], seed=1).indices.tolist() == list(range(8))
    with pytest.raises(UsageError, match="no row is left"):
        mixed(Split.whole(prepared), Concatenate(), [0.01, 0.01], seed=1)


def test_short_names():
    assert short_names(["data/a.jsonl", "owner/name", "identity"]) == ["a.jsonl", "name", "identity"]
    assert short_names(["x/a.jsonl", "y/a.jsonl"]) == ["x/a.jsonl", "y/a.jsonl"]
