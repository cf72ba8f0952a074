"""From data: options to rows that train and rows that validate."""

import json

import pytest
from lightning.pytorch import Trainer

from ltune.data.datamodule import ChatData
from ltune.data.mixing import Concatenate, Interleave
from ltune.data.rows import IGNORE
from ltune.data.sources import Dataset
from ltune.errors import UsageError
from ltune.models.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("tiny")


@pytest.fixture
def make(tmp_path, tokenizer):
    """Data of this test's folder, where a, b and c have 6, 3 and 2 rows."""
    for name, rows in (("a", 6), ("b", 3), ("c", 2)):
        lines = [json.dumps({"instruction": "hi", "output": f"{name}{number}"}) for number in range(rows)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")

    def made(datasets, stage="fit", **options):
        data = ChatData(datasets, folder=str(tmp_path), tokenizer=tokenizer, cache=str(tmp_path / "cache"), processes=1, **options)
        data.trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
        data.prepare(stage)
        return data

    return made


def answers(rows, tokenizer):
    return [tokenizer.decode(row.labels[row.labels != IGNORE], skip_special_tokens=True) for i in range(len(rows)) for row in rows[i]]


def test_data_sets_stand_one_after_the_other(make, tokenizer):
    data = make(["b.jsonl", "c.jsonl"])
    assert answers(data.train_rows, tokenizer) == ["b0", "b1", "b2", "c0", "c1"]
    assert data.train_rows.place(3) == "c.jsonl:1"
    assert data.val_rows is None
    assert data.val_names == []


def test_weights_repeat_a_data_set(make, tokenizer):
    data = make(["b.jsonl", Dataset("c.jsonl", weight=2.0)])
    assert answers(data.train_rows, tokenizer) == ["b0", "b1", "b2", "c0", "c1", "c0", "c1"]
    assert data.train_rows.trained.tolist() == [int((data.train_rows[row][0].labels != IGNORE).sum()) for row in range(7)]


def test_interleaved_rows(make, tokenizer):
    assert answers(make(["b.jsonl", "c.jsonl"], mix=Interleave("under")).train_rows, tokenizer) == ["b0", "c0", "b1", "c1"]
    assert answers(make(["b.jsonl", "c.jsonl"], mix=Interleave("over")).train_rows, tokenizer) == ["b0", "c0", "b1", "c1", "b2", "c0"]
    once = make(["b.jsonl", Dataset("a.jsonl", max_rows=1)], mix=Interleave("once"))
    assert answers(once.train_rows, tokenizer) == ["b0", "a0", "b1", "b2"]


def test_nothing_is_tokenised_twice_for_another_mix(make):
    plain, mixed = make(["a.jsonl", "b.jsonl"]), make(["a.jsonl", "b.jsonl"], mix=Interleave("over", [0.5, 0.5], seed=3))
    assert plain.prepared["all"].key == mixed.prepared["all"].key
    assert sorted(set(mixed.train_rows.indices.tolist())) == list(range(9))


def test_rows_held_out_are_not_trained_on_whatever_the_mix(make):
    for mix in (Concatenate(), Interleave("over")):
        data = make(["a.jsonl", Dataset("b.jsonl", weight=1.0)], mix=mix, val_size=4)
        assert len(data.val_rows) == 4
        assert not set(data.train_rows.indices.tolist()) & set(data.val_rows.indices.tolist())


def test_a_data_set_that_is_all_held_out_is_refused(make):
    with pytest.raises(UsageError, match="all its rows are held out"):
        make([Dataset("a.jsonl", max_rows=1), Dataset("c.jsonl", max_rows=1)], val_size=1)


def test_each_validation_set_has_a_loader_of_its_own(make, tokenizer):
    data = make(["a.jsonl"], val_datasets=["b.jsonl", "c.jsonl", Dataset("b.jsonl", max_rows=1)], batch_size=2)
    assert data.val_names == ["b.jsonl", "c.jsonl", "b.jsonl 2"]
    assert [len(loader) for loader in data.val_dataloader()] == [2, 1, 1]
    trained = [sum(len(batch.targets) for step in loader for batch in step.batches()) for loader in data.val_dataloader()]
    assert trained == [int(data.val_rows.trained[part].sum()) for part in (slice(0, 3), slice(3, 5), slice(5, 6))]
    assert len(data.val_rows) == 6


def test_weights_are_for_training(make):
    with pytest.raises(UsageError, match=r"data\.val_datasets: weights are for training"):
        make(["a.jsonl"], val_datasets=[Dataset("b.jsonl", weight=2.0)])


def test_one_validation_set_and_rows_held_out_have_one_loader(make):
    assert len(make(["a.jsonl"], val_datasets=["b.jsonl"]).val_dataloader()) == 2
    data = make(["a.jsonl", "b.jsonl"], val_size=3)
    assert len(data.val_dataloader()) == 2
    assert data.val_names == []


def test_test_sets_have_loaders_too(make):
    data = make(["a.jsonl"], stage="test", test_datasets=["b.jsonl", "c.jsonl"])
    assert data.test_names == ["b.jsonl", "c.jsonl"]
    assert [len(loader) for loader in data.test_dataloader()] == [2, 1]


def test_bad_rows_are_refused_or_skipped_and_counted(tmp_path, make, tokenizer):
    good = json.dumps({"instruction": "hi", "output": "x"})
    (tmp_path / "bad.jsonl").write_text(f"{good}\n{{broken\n{good}\n" + '{"instruction": "", "output": "y"}\n')
    with pytest.raises(UsageError, match=r"bad\.jsonl:2: malformed JSON"):
        make(["bad.jsonl"])
    data = make(["bad.jsonl"], bad_rows="skip")
    assert answers(data.train_rows, tokenizer) == ["x", "x"]
    assert [data.train_rows.place(row) for row in range(2)] == ["bad.jsonl:1", "bad.jsonl:3"]
    assert data.prepared["all"].report["total"]["bad_rows"] == 2
    prompts = make(["bad.jsonl"], stage="predict", bad_rows="skip").predict_dataloader()
    assert sum(len(batch) for batch in prompts) == 2


def test_a_file_of_bad_rows_only_is_refused(tmp_path, make):
    (tmp_path / "bad.jsonl").write_text("{broken\n[1]\n")
    with pytest.raises(UsageError, match="bad.jsonl"):
        make(["bad.jsonl"], bad_rows="skip")


def test_micro_batches_of_so_many_tokens(make):
    data = make(["a.jsonl", "b.jsonl"], tokens_per_batch=40, accumulate=2)
    packed = data.packed_micro_batches()
    assert sorted(row for rows in packed for row in rows) == list(range(9))
    lengths = {row: len(data.train_rows[row][0]) for row in range(9)}
    assert max(sum(lengths[row] for row in rows) for rows in packed) <= 40
    assert len(packed) < 9
    steps = list(data.train_dataloader())
    assert {rows for step in steps for rows in step.micro_batches} == set(packed)
    assert [step.position for step in steps] == [(0, number) for number in range(-(-len(packed) // 2))]
    assert make(["a.jsonl"]).packed_micro_batches() is None


def test_the_report_says_what_is_worth_a_second_look(make, tmp_path, caplog):
    (tmp_path / "same.jsonl").write_text('{"instruction": "hi", "output": ""}\n' * 4)
    data = make(["a.jsonl", "same.jsonl"])
    with caplog.at_level("INFO", logger="ltune"):
        data.report(tmp_path)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("ltune")]
    assert [line.partition(" (first")[0] for line in said[:-1]] == [
        "data: same.jsonl: 4 rows with an empty answer: the model learns to say nothing",
        "data: same.jsonl: all 4 answers are the same; is the answer in the right column?",
        "data: 3 of 10 rows (30.0%) are the same, token by token, as an earlier one",
    ]
    assert said[-1].startswith("first row, ⟦trained⟧ or green, ‹control› or cyan:\n")
    assert (tmp_path / "data_report.json").exists()


def test_one_row_is_a_batch(make):
    data = make([Dataset("a.jsonl", max_rows=1)], batch_size=8)
    batches = list(data.train_dataloader())
    assert [batch.rows for batch in batches] == [(0,)]
