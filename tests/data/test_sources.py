"""Names lead to files."""

import json

import pytest

from ltune.data.sources import QUICKSTART, Dataset, Source, find, read, resolve
from ltune.errors import UsageError


def write(folder, name, content=""):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def refusal(dataset, folder="nowhere"):
    with pytest.raises(UsageError) as error:
        resolve(dataset, folder)
    assert len(str(error.value).splitlines()) <= 5
    return str(error.value)


def test_a_registered_name_brings_its_columns(tmp_path):
    file = write(tmp_path, "d/a.json", '[{"q": 1}]')
    entry = {"file_name": "a.json", "formatting": "sharegpt", "columns": {"messages": "q"}, "tags": {"role_tag": "r"}}
    write(tmp_path, "d/dataset_info.json", {"mine": entry})
    source = resolve(Dataset("mine", max_rows=3), tmp_path / "d")
    assert (source.files, source.max_rows, source.format, source.columns, source.tags) == (
        (file,), 3, "sharegpt", {"messages": "q"}, {"role_tag": "r"},
    )  # fmt: skip
    assert resolve(Dataset("mine", format="openai"), tmp_path / "d").format == "openai"


def test_a_registered_name_may_stand_for_a_folder_or_a_glob(tmp_path):
    write(tmp_path, "rows/a.jsonl"), write(tmp_path, "rows/b.jsonl")
    write(tmp_path, "dataset_info.json", {"folder": {"file_name": "rows"}, "glob": {"file_name": "rows/*.jsonl"}})
    for name in ("folder", "glob"):
        assert [file.name for file in resolve(name, tmp_path).files] == ["a.jsonl", "b.jsonl"]


def test_a_folder_gives_its_files_in_order(tmp_path):
    write(tmp_path, "d/b.jsonl", '{"a": 2}')
    write(tmp_path, "d/a.json", '[{"a": 1}]')
    write(tmp_path, "d/.hidden.jsonl", "x")
    write(tmp_path, "d/notes.txt", "x")
    write(tmp_path, "d/notes.md", "x")
    assert list(read(resolve(str(tmp_path / "d"), "nowhere"))) == [("a.json row 1", {"a": 1}), ("b.jsonl:1", {"a": 2})]


def test_a_folder_of_texts_is_a_data_set_too(tmp_path):
    write(tmp_path, "d/b.txt", "b"), write(tmp_path, "d/a.txt", "a")
    assert list(read(resolve(str(tmp_path / "d"), "nowhere"))) == [("a.txt:1", {"text": "a"}), ("b.txt:1", {"text": "b"})]


def test_a_glob_gives_its_files_in_order(tmp_path):
    for name in ("rows/b.jsonl", "rows/a.jsonl", "rows/deep/c.jsonl", "rows/notes.md"):
        write(tmp_path, name)
    here = resolve(str(tmp_path / "rows" / "*.jsonl"), "nowhere")
    assert [file.name for file in here.files] == ["a.jsonl", "b.jsonl"]
    assert resolve("rows/*.jsonl", tmp_path).files == here.files
    assert [file.name for file in resolve("rows/**/*.jsonl", tmp_path).files] == ["a.jsonl", "b.jsonl", "c.jsonl"]
    assert "cannot read this kind of file" in refusal("rows/*.md", tmp_path)
    assert "no data set rows/*.csv" in refusal("rows/*.csv", tmp_path)


def test_several_files_make_one_data_set_under_a_name(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "more/c.jsonl", "more/d.jsonl"):
        write(tmp_path, name)
    source = resolve(Dataset("mine", files=["b.jsonl", str(tmp_path / "a.jsonl"), "more/*.jsonl"]), tmp_path)
    assert (source.name, [file.name for file in source.files]) == ("mine", ["b.jsonl", "a.jsonl", "c.jsonl", "d.jsonl"])
    assert "no file gone.jsonl" in refusal(Dataset("mine", files=["a.jsonl", "gone.jsonl"]), tmp_path)
    assert "twice" in refusal(Dataset("mine", files=["a.jsonl", "*.jsonl"]), tmp_path)
    assert "files is empty" in refusal(Dataset("mine", files=[]), tmp_path)


def test_quickstart_is_embedded():
    assert resolve("quickstart", "nowhere").files == (QUICKSTART,)
    assert len(list(read(resolve("quickstart", "nowhere")))) >= 200


def test_what_is_on_the_hub_is_found_without_fetching_it(tmp_path):
    (tmp_path / "dataset_info.json").write_text(json.dumps({"far": {"hf_hub_url": "owner/name", "subset": "en"}}))
    for name in ("far", "owner/name", Dataset("hf://datasets/owner/name@main", streaming=True)):
        wanted, place, _ = find(name, tmp_path)
        assert place.id == "owner/name"
        assert isinstance(wanted, Dataset)
    assert place.revision == "main"
    found = find("quickstart", tmp_path)
    assert isinstance(found, Source)
    assert found == resolve("quickstart", tmp_path)


def test_an_unknown_name_says_what_it_may_have_meant_and_where_was_looked(tmp_path):
    write(tmp_path, "dataset_info.json", {"alpaca_en_demo": {"file_name": "a.json"}})
    message = refusal("alpaca_en_dmo", tmp_path)
    assert message.startswith("there is no data set alpaca_en_dmo.")
    assert f"{tmp_path / 'dataset_info.json'} (1 there)" in message
    assert "Did you mean alpaca_en_demo?" in message
    for name in ("path/to/rows.jsonl", "rows.jsonl.gz", "owner/rows.jsonl.gz"):
        assert f"no data set {name}" in refusal(name, tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_rows": 0}, "max_rows is 0"),
        ({"num_samples": 0}, "num_samples is 0"),
        ({"weight": 0.0}, "weight is 0.0"),
        ({"weight": float("nan")}, "weight is nan"),
        ({"columns": {"promt": "q"}}, "columns has 'promt'"),
        ({"tags": {"role": "q"}}, "tags has 'role'"),
        ({"split": "test"}, "split is for data sets on the hub"),
        ({"subset": "en"}, "subset is for data sets on the hub"),
        ({"revision": "main"}, "revision is for data sets on the hub"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path, options, words):
    write(tmp_path, "a.jsonl")
    assert words in refusal(Dataset("a.jsonl", **options), tmp_path)


def test_other_kinds_of_files_and_empty_folders_are_refused(tmp_path):
    for name in ("rows.xlsx", "rows", "rows.parquet.gz"):
        assert "cannot read this kind of file; known are .jsonl" in refusal(str(write(tmp_path, name)))
    (tmp_path / "empty").mkdir()
    assert "holds no" in refusal(str(tmp_path / "empty"))
