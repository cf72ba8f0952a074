"""Files to records: what is content, where a row stands, and what rows are drawn."""

import gzip
import json

import numpy as np
import pytest

from ltune.data.read import read, read_file, sha256
from ltune.data.rows import BadRow
from ltune.data.sources import Dataset, resolve
from ltune.errors import UsageError


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(path):
    return list(read_file(path))


def refusal(path):
    with pytest.raises(UsageError) as error:
        rows(path)
    return str(error.value)


def test_json_arrays_count_rows_and_lines_count_lines(tmp_path):
    assert rows(write(tmp_path, "a.json", ' [ {"a": "]"} ,\n {"a": [2]}\n]\n')) == [
        ("a.json row 1", {"a": "]"}),
        ("a.json row 2", {"a": [2]}),
    ]
    assert rows(write(tmp_path, "a.jsonl", '{"a": 1}\r\n\n  \n{"a": 2}')) == [("a.jsonl:1", {"a": 1}), ("a.jsonl:4", {"a": 2})]
    assert rows(write(tmp_path, "a.jsonl", '{"a": "ä\u2028"}\n  {"a": 2}  \r\n')) == [
        ("a.jsonl:1", {"a": "ä\u2028"}),
        ("a.jsonl:2", {"a": 2}),
    ]


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for folder in ("a", "b/c"):
        (tmp_path / folder).mkdir(parents=True)
        write(tmp_path / folder, "rows.jsonl", '{"a": 1}\n')
    write(tmp_path, "more.json", '[{"a": 1}]')
    source = resolve(Dataset("mine", files=["**/rows.jsonl", "more.json"]), tmp_path)
    assert [place for place, _ in read(source)] == ["a/rows.jsonl:1", "b/c/rows.jsonl:1", "more.json row 1"]


def test_a_byte_order_mark_is_no_content(tmp_path):
    for name, content in (("a.json", '[{"text": 1}]'), ("a.jsonl", '{"text": 1}'), ("a.csv", "text\n1\n"), ("a.txt", "1\n")):
        assert len(rows(write(tmp_path, name, b"\xef\xbb\xbf" + content.encode()))) == 1
        assert [*rows(tmp_path / name)[0][1]] == ["text"]
        assert str(rows(tmp_path / name)[0][1]["text"]) == "1"


def test_lines_in_a_file_named_json(tmp_path):
    assert rows(write(tmp_path, "a.json", '{"a": 1}\n{"a": 2}\n')) == [("a.json row 1", {"a": 1}), ("a.json row 2", {"a": 2})]


def test_csv_is_text_with_quoted_newlines(tmp_path):
    assert rows(write(tmp_path, "a.csv", 'instruction,output\r\n"one\ntwo",4\r\n\r\n')) == [
        ("a.csv row 1", {"instruction": "one\ntwo", "output": "4"})
    ]


def test_a_row_of_a_text_is_a_line(tmp_path):
    assert rows(write(tmp_path, "a.txt", "one \r\n\n \ntwo")) == [("a.txt:1", {"text": "one "}), ("a.txt:4", {"text": "two"})]


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", '{"a": "ä"}\n'), ("a.json", '[{"a": "ä"}]'), ("a.csv", "a\nä\n"), ("a.txt", "ä\n")]
)
def test_files_may_be_packed(tmp_path, name, content):
    plain = rows(write(tmp_path, name, content))
    packed = rows(write(tmp_path, f"{name}.gz", gzip.compress(content.encode())))
    assert [(place.replace(".gz", ""), record) for place, record in packed] == plain


def test_bad_rows_come_in_the_records_stead_where_they_are_skipped(tmp_path):
    file = write(tmp_path, "a.jsonl", b'{"a": 1}\n{"a": \n\xff\n[1]\n{"a": 1, "a": 2}\n{"a": 2}')
    found = list(read(resolve(str(file), ""), "skip"))
    assert [place for place, _ in found] == [f"a.jsonl:{line}" for line in range(1, 7)]
    assert [record.reason if isinstance(record, BadRow) else record for _, record in found] == [
        {"a": 1},
        "malformed JSON: Expecting value (column 6), got the end.",
        "not UTF-8 text: invalid start byte (byte 0xff).",
        "a row must be an object of columns; got [1].",
        'malformed JSON: the key "a" is given twice.',
        {"a": 2},
    ]


def test_an_array_is_read_on_behind_a_row_that_is_json_but_ambiguous(tmp_path):
    file = write(tmp_path, "a.json", '[{"a": 1, "a": 2}, {"a": NaN}, 7, {"a": 3}, {"a": ]')
    met, found = [], read(resolve(str(file), ""), "skip")
    with pytest.raises(UsageError, match="a.json:1: malformed JSON: Expecting value"):
        met.extend((place, type(record)) for place, record in found)
    assert met == [("a.json row 1", BadRow), ("a.json row 2", BadRow), ("a.json row 3", BadRow), ("a.json row 4", dict)]


def test_num_samples_are_the_rows_that_llamafactory_draws(tmp_path):
    write(tmp_path, "a.jsonl", "".join(f'{{"a": {number}}}\n' for number in range(10)))
    write(tmp_path, "dataset_info.json", json.dumps({"few": {"file_name": "a.jsonl", "num_samples": 4}}))
    drawn = np.random.RandomState(42).permutation(10)
    assert [record["a"] for _, record in read(resolve("few", tmp_path))] == drawn[:4].tolist()
    many = [record["a"] for _, record in read(resolve(Dataset("few", num_samples=25), tmp_path))]
    assert len(many) == 25
    assert many[:10] == drawn.tolist()
    other = [record["a"] for _, record in read(resolve(Dataset("few", seed=1), tmp_path))]
    assert other == np.random.RandomState(1).permutation(10)[:4].tolist()


def test_sha256_of_contents(tmp_path):
    assert sha256(write(tmp_path, "a", "abc")) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_an_array_in_a_file_of_lines_is_told(tmp_path):
    assert refusal(write(tmp_path, "a.jsonl", '[\n{"a": 1}\n]\n')).splitlines()[1] == "Name it  a.json"
