"""Names lead to files, files to rows; what is malformed is named by file and line."""

import json

import pytest

from ltune.data.sources import Dataset, read, read_file, resolve, sha256
from ltune.errors import UsageError


def write(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(path):
    return list(read(resolve(str(path), "nowhere")))


def refusal(path):
    with pytest.raises(UsageError) as error:
        rows(path)
    return str(error.value)


# -- names ----------------------------------------------------------------------------------------------------------------------------


def test_a_registered_name_brings_its_columns(tmp_path):
    file = write(tmp_path, "d/a.json", '[{"q": 1}]')
    entry = {"file_name": "a.json", "formatting": "sharegpt", "columns": {"messages": "q"}, "tags": {"role_tag": "r"}}
    write(tmp_path, "d/dataset_info.json", json.dumps({"mine": entry}))
    source = resolve(Dataset("mine", max_rows=3), tmp_path / "d")
    assert (source.files, source.max_rows, source.format, source.columns, source.tags) == (
        (file,), 3, "sharegpt", {"messages": "q"}, {"role_tag": "r"},
    )  # fmt: skip
    assert resolve(Dataset("mine", format="openai"), tmp_path / "d").format == "openai"


def test_num_samples_of_the_registry_are_the_first_rows(tmp_path):
    write(tmp_path, "a.jsonl", '{"a": 1}\n{"a": 2}\n{"a": 3}\n')
    write(tmp_path, "dataset_info.json", json.dumps({"mine": {"file_name": "a.jsonl", "num_samples": 2}}))
    assert [place for place, _ in read(resolve("mine", tmp_path))] == ["a.jsonl:1", "a.jsonl:2"]


def test_a_folder_gives_its_files_in_order(tmp_path):
    write(tmp_path, "d/b.jsonl", '{"a": 2}')
    write(tmp_path, "d/a.json", '[{"a": 1}]')
    write(tmp_path, "d/notes.txt", "x")
    assert rows(tmp_path / "d") == [("a.json row 1", {"a": 1}), ("b.jsonl:1", {"a": 2})]


def test_quickstart_is_embedded():
    assert len(list(read(resolve("quickstart", "nowhere")))) >= 200


def test_an_unknown_name_says_what_it_may_have_meant_and_where_was_looked(tmp_path):
    write(tmp_path, "dataset_info.json", json.dumps({"alpaca_en_demo": {"file_name": "a.json"}}))
    with pytest.raises(UsageError, match=r"(?s)no data set alpaca_en_dmo.*dataset_info\.json.*Did you mean alpaca_en_demo\?"):
        resolve("alpaca_en_dmo", tmp_path)
    with pytest.raises(UsageError, match="no data set path/to/rows.jsonl"):
        resolve("path/to/rows.jsonl", tmp_path)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"file_name": "a.json", "ranking": True}, "ranking: true"),
        ({"file_name": "a.json", "columns": {"kto_tag": "label"}}, "kto_tag"),
        ({"file_name": "gone.json"}, "does not exist"),
        ({"script_url": "x"}, "neither file_name nor hf_hub_url"),
    ],
)
def test_entries_that_cannot_be_read_are_refused(tmp_path, entry, words):
    write(tmp_path, "a.json", "[{}]")
    write(tmp_path, "dataset_info.json", json.dumps({"mine": entry}))
    with pytest.raises(UsageError, match=words):
        resolve("mine", tmp_path)


def test_other_kinds_of_files_and_empty_folders_are_refused(tmp_path):
    assert "known are .jsonl" in refusal(write(tmp_path, "rows.txt", "x"))
    (tmp_path / "empty").mkdir()
    assert "holds no" in refusal(tmp_path / "empty")


# -- contents -------------------------------------------------------------------------------------------------------------------------


def test_json_arrays_count_rows_and_lines_count_lines(tmp_path):
    assert rows(write(tmp_path, "a.json", ' [ {"a": "]"} ,\n {"a": [2]}\n]\n')) == [
        ("a.json row 1", {"a": "]"}),
        ("a.json row 2", {"a": [2]}),
    ]
    assert rows(write(tmp_path, "a.jsonl", '{"a": 1}\r\n\n  \n{"a": 2}')) == [("a.jsonl:1", {"a": 1}), ("a.jsonl:4", {"a": 2})]


def test_a_byte_order_mark_is_no_content(tmp_path):
    for name, content in (("a.json", '[{"a": 1}]'), ("a.jsonl", '{"a": 1}'), ("a.csv", "a\n1\n")):
        assert len(rows(write(tmp_path, name, b"\xef\xbb\xbf" + content.encode()))) == 1
        assert list(rows(tmp_path / name)[0][1]) == ["a"]


def test_lines_in_a_file_named_json(tmp_path):
    assert rows(write(tmp_path, "a.json", '{"a": 1}\n{"a": 2}\n')) == [("a.json row 1", {"a": 1}), ("a.json row 2", {"a": 2})]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": }\n', "a.jsonl:2: malformed JSON: Expecting value (column 7)"),
        ("a.jsonl", '{"a": 1}\n{"a": NaN}\n', "a.jsonl:2: malformed JSON: NaN"),
        ("a.jsonl", '{"a": 1}\n[1]\n', "a.jsonl:2: a row must be an object"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', "a.jsonl:2: not UTF-8"),
        ("a.jsonl", "\n\n", "is empty"),
        ("a.json", "", "is empty"),
        ("a.json", "[]", "is empty"),
        ("a.json", '[\n{"a": 1},\n{"a" 2}]', "a.json:3: malformed JSON: Expecting ':' delimiter"),
        ("a.json", '[\n{"a": 1}\n{"a": 2}]', "a.json:3: malformed JSON: Expecting ',' or ']'"),
        ("a.json", '[{"a": 1},\n', "a.json:2: malformed JSON"),
        ("a.json", '[{"a": 1}\n', "a.json:2: malformed JSON"),
        ("a.json", '[{"a": 1},]', "a.json:1: malformed JSON"),
        ("a.json", '[{"a": 1}]\n[]', "a.json:2: malformed JSON: Nothing may follow"),
        ("a.json", '[{"a": "NaN"},\n{"b": "x", "a": -Infinity}]', "a.json:2: malformed JSON: -Infinity"),
        ("a.json", "[" * 100_000, "malformed JSON"),
        ("a.json", b'[\n{"a": "\xff"}]', "a.json:2: not UTF-8"),
        ("a.json", "[3]", "a.json row 1: a row must be an object"),
        ("a.csv", "a,b\n1,2\n3\n", "a.csv:3: the row has not as many fields as the header (2)"),
        ("a.csv", 'a,b\n1,"2', "malformed CSV"),
        ("a.parquet", "no parquet", "malformed parquet"),
    ],
)
def test_malformed_content_is_named_by_file_and_line(tmp_path, name, content, words):
    assert words in refusal(write(tmp_path, name, content))


def test_csv_is_text_with_quoted_newlines(tmp_path):
    assert rows(write(tmp_path, "a.csv", 'instruction,output\n"one\ntwo",4\n')) == [
        ("a.csv row 1", {"instruction": "one\ntwo", "output": "4"})
    ]


def test_parquet_keeps_lists(tmp_path):
    import pyarrow
    from pyarrow import parquet

    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello!"}]
    parquet.write_table(pyarrow.Table.from_pylist([{"messages": talk}]), tmp_path / "a.parquet")
    assert rows(tmp_path / "a.parquet") == [("a.parquet row 1", {"messages": talk})]


def test_what_datasets_keeps_of_a_hub_data_set(tmp_path):
    import pyarrow

    table = pyarrow.Table.from_pylist([{"text": "a"}, {"text": "b"}])
    with pyarrow.ipc.new_stream(tmp_path / "x-train.arrow", table.schema) as stream:
        stream.write_table(table)
    assert list(read_file(tmp_path / "x-train.arrow")) == [("x-train.arrow row 1", {"text": "a"}), ("x-train.arrow row 2", {"text": "b"})]


def test_a_hub_id_that_cannot_be_had_is_named(tmp_path):
    with pytest.raises(UsageError, match="cannot get data set nobody/nothing"):  # the tests run offline
        resolve("nobody/nothing", tmp_path)


def test_sha256_of_contents(tmp_path):
    assert sha256(write(tmp_path, "a", "abc")) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
