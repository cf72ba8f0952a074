"""Tokenised once, found again, whole or not at all; and the same with several processes."""

import json
import os
import pickle
import socket
import subprocess
import sys

import numpy as np
import pytest
from transformers import AutoTokenizer

from ltune.data import contents
from ltune.data.encode import Encoder
from ltune.data.prepared import prepare
from ltune.data.rows import IGNORE, Chat, Text
from ltune.data.sources import QUICKSTART, Dataset, sha256
from ltune.data.templates import load_template
from ltune.errors import UsageError


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(str(QUICKSTART.parent / "tiny"))


@pytest.fixture
def make(tmp_path, tokenizer):
    """Prepare data sets of this test's folder."""

    def made(*datasets, rows=Chat, max_length=200, truncation="left", **options):
        encoder = Encoder(load_template(None, tokenizer), tokenizer, max_length=max_length, truncation=truncation)
        return prepare(list(datasets), tmp_path, rows=rows, encoder=encoder, cache=tmp_path / "cache", **options)

    return made


def write(path, *answers):
    path.write_text("".join(json.dumps({"instruction": f"say {answer}", "output": answer}) + "\n" for answer in answers))
    return path


def answers(prepared, tokenizer):
    rows = (sequence for row in range(len(prepared)) for sequence in prepared[row])
    return [tokenizer.decode(row.labels[row.labels != IGNORE], skip_special_tokens=True) for row in rows]


def test_data_sets_stand_in_the_order_named_each_cut(tmp_path, make, tokenizer):
    write(tmp_path / "a.jsonl", "one", "two", "three")
    write(tmp_path / "b.jsonl", "four", "five", "six", "seven")
    prepared = make("b.jsonl", Dataset("a.jsonl", max_rows=1), max_rows=3)
    assert answers(prepared, tokenizer) == ["four", "five", "six", "one"]
    assert [prepared.place(row) for row in range(4)] == ["b.jsonl:1", "b.jsonl:2", "b.jsonl:3", "a.jsonl:1"]
    (first,) = prepared[0]
    assert first.input_ids.dtype == first.labels.dtype == np.int32
    assert prepared.lengths.tolist() == [len(prepared[row][0]) for row in range(4)]
    assert prepared.trained.tolist() == [int((prepared[row][0].labels != IGNORE).sum()) for row in range(4)]
    assert prepared.lengths.dtype == prepared.trained.dtype == np.int64
    assert prepared.report["sources"] == [
        {"name": name, "path": str(tmp_path / name), "sha256": sha256(tmp_path / name), "rows": rows}
        for name, rows in (("b.jsonl", 3), ("a.jsonl", 1))
    ]


def test_it_is_found_again_until_contents_or_settings_change(tmp_path, make):
    file = write(tmp_path / "a.jsonl", "one", "two")
    first = make("a.jsonl")
    written = (first.folder / "input_ids.npy").stat().st_mtime_ns
    assert (make("a.jsonl").folder / "input_ids.npy").stat().st_mtime_ns == written
    assert make("a.jsonl").report == first.report
    assert len({first.key, make("a.jsonl", max_rows=1).key, make("a.jsonl", max_length=100).key}) == 3
    write(file, "one", "too")
    assert make("a.jsonl").key != first.key


def test_a_damaged_one_is_made_anew(tmp_path, make, caplog):
    write(tmp_path / "a.jsonl", "one", "two")
    folder = make("a.jsonl").folder
    os.truncate(folder / "labels.npy", (folder / "labels.npy").stat().st_size - 4)
    assert len(make("a.jsonl")) == 2
    assert "damaged" in caplog.text


def test_what_a_dead_process_left_is_removed_and_a_living_ones_is_not(tmp_path, make):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left, living = (tmp_path / "cache" / f".{pid}@{socket.gethostname()}.abc" for pid in (dead.pid, os.getppid()))
    left.mkdir(parents=True)
    living.mkdir()
    write(tmp_path / "a.jsonl", "one")
    folder = make("a.jsonl").folder
    assert sorted((tmp_path / "cache").iterdir()) == sorted([living, folder])


def test_several_processes_give_the_same_in_the_same_order(tmp_path, make):
    write(tmp_path / "a.jsonl", *(f"answer {number}" for number in range(1200)))
    alone = make("a.jsonl", processes=1)
    bytes_alone = {file.name: file.read_bytes() for file in alone.folder.iterdir()}
    (tmp_path / "cache").rename(tmp_path / "kept")
    together = make("a.jsonl", processes=2)
    assert {file.name: file.read_bytes() for file in together.folder.iterdir()} == bytes_alone


def test_an_error_in_another_process_arrives(tmp_path, make):
    file = write(tmp_path / "a.jsonl", *["one"] * 600)
    file.write_text(file.read_text() + '{"instruction": "hi"}\n')
    with pytest.raises(UsageError, match=r"a\.jsonl:601: alpaca needs the column output"):
        make("a.jsonl", processes=2)
    assert list((tmp_path / "cache").iterdir()) == []


def test_dropped_rows_are_left_out_and_reported(tmp_path, make, tokenizer):
    write(tmp_path / "a.jsonl", "one", "word " * 300, "two")
    prepared = make("a.jsonl", truncation="drop")
    assert answers(prepared, tokenizer) == ["one", "two"]
    assert prepared.place(1) == "a.jsonl:3"
    assert prepared.report["total"]["dropped"] == {"longer than 200 tokens": {"rows": 1, "places": ["a.jsonl:2"]}}
    assert prepared.report["sources"][0]["rows"] == 3


def test_a_data_set_with_nothing_to_train_on_is_refused(tmp_path, make):
    write(tmp_path / "a.jsonl", "one")
    write(tmp_path / "b.jsonl", "word " * 300, "word " * 400)
    with pytest.raises(
        UsageError, match=r"(?s)b\.jsonl: no row of it.*2 rows: the answer does not fit in 200 tokens \(first: b\.jsonl:1\)"
    ):
        make("a.jsonl", "b.jsonl")
    with pytest.raises(UsageError, match="max_rows: 0"):
        make("a.jsonl", max_rows=0)


def test_a_long_text_becomes_several_rows_of_one_place(tmp_path, make):
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": "a b c d e f g h " * 20}) + "\n")
    prepared = make("t.jsonl", rows=Text, max_length=50)
    assert len(prepared) > 2
    assert prepared.lengths.max() == 50
    assert {prepared.place(row) for row in range(len(prepared))} == {"t.jsonl:1"}


def test_a_long_conversation_becomes_several_rows_of_one_place_and_is_reported(tmp_path, make):
    said = [{"role": role, "content": f"{role} {number} " * 4} for number in range(8) for role in ("user", "assistant")]
    rows = [{"messages": said}, {"messages": said[:2]}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepared = make("a.jsonl", truncation="split")
    assert len(prepared) > 2
    assert [prepared.place(number) for number in (0, 1, len(prepared) - 1)] == ["a.jsonl:1", "a.jsonl:1", "a.jsonl:2"]
    total = prepared.report["total"]
    assert (total["split"], total["places"]["split"]) == (1, ["a.jsonl:1"])
    assert total["ends_cut"] == 0


def test_bad_rows_are_refused_or_left_out_and_reported(tmp_path, make, tokenizer):
    file = write(tmp_path / "a.jsonl", "one", "two")
    file.write_text(file.read_text() + '{"instruction": "three"\n{"instruction": "four"}\n')
    with pytest.raises(UsageError, match=r"a\.jsonl:3: "):
        make("a.jsonl")
    prepared = make("a.jsonl", bad_rows="skip")
    assert answers(prepared, tokenizer) == ["one", "two"]
    assert prepared.report["total"]["bad_rows"] == 2
    assert [entry["places"] for entry in prepared.report["total"]["skipped"].values()] == [["a.jsonl:3"], ["a.jsonl:4"]]
    assert prepared.report["sources"][0]["rows"] == 4


def test_a_data_set_of_bad_rows_only_is_refused(tmp_path, make):
    (tmp_path / "a.jsonl").write_text('{"instruction": "three"}\n' * 3)
    with pytest.raises(UsageError):
        make("a.jsonl", bad_rows="skip")
    (tmp_path / "b.jsonl").write_text('{"instruction": 1, "output": "a"}\n' * 3)
    with pytest.raises(UsageError, match=r"b\.jsonl: no row of it can be trained on\.\n3 rows: .*first: b\.jsonl:1"):
        make("b.jsonl", bad_rows="skip")


def test_what_belongs_to_a_row_is_mapped_not_read(tmp_path, make):
    write(tmp_path / "a.jsonl", "one", "two")
    prepared = make("a.jsonl")
    for array in (prepared.trained, prepared.lengths, prepared[0][0].input_ids, prepared[0][0].labels):
        while not isinstance(array, np.memmap):
            array = array.base
        assert array.mode == "r"


def test_a_large_source_is_not_read_again_at_the_next_start(tmp_path, make, monkeypatch):
    monkeypatch.setattr(contents, "LARGE", 0)
    monkeypatch.setattr(contents, "SETTLED", -1.0)
    file = write(tmp_path / "a.jsonl", "one", "two")
    make("a.jsonl")
    (record,) = (tmp_path / "cache" / "hashes").iterdir()
    record.write_text(record.read_text().replace(sha256(file), "remembered"))
    assert make("a.jsonl").report["sources"][0]["sha256"] == "remembered"
    write(file, "one", "too")
    assert make("a.jsonl").report["sources"][0]["sha256"] == sha256(file)


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs a file that is there and cannot be read")
def test_a_source_that_cannot_be_read_is_named(tmp_path, make):
    (tmp_path / "a.jsonl").symlink_to("/proc/self/mem")
    with pytest.raises(UsageError, match=r"data set a\.jsonl: .*a\.jsonl cannot be read: Input/output error"):
        make("a.jsonl")


def test_it_travels_to_another_process_by_its_folder(tmp_path, make):
    write(tmp_path / "a.jsonl", "one", "two")
    prepared = make("a.jsonl")
    assert len(pickle.dumps(prepared)) < 500
    again = pickle.loads(pickle.dumps(prepared))
    assert again[1][0].input_ids.tolist() == prepared[1][0].input_ids.tolist()
    with pytest.raises(IndexError):
        again[2]


def test_the_walkthroughs_rows(shared, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(str(shared / "golden" / "runs" / "model"))
    encoder = Encoder(load_template("llama3", tokenizer), tokenizer, max_length=2048)
    datasets = ["identity", Dataset("alpaca_en_demo", max_rows=500)]
    prepared = prepare(datasets, shared / "data", rows=Chat, encoder=encoder, cache=tmp_path)
    assert len(prepared) == 591
    assert prepared.place(91) == "alpaca_en_demo.json row 1"
    (first,) = prepared[0]
    prompt = tokenizer.encode(
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        add_special_tokens=False,
    )
    assert first.input_ids[: len(prompt)].tolist() == prompt
    assert first.labels.tolist() == [IGNORE] * len(prompt) + first.input_ids[len(prompt) :].tolist()
    assert first.input_ids[-1] == tokenizer.convert_tokens_to_ids("<|eot_id|>")
