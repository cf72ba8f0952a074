"""The hub, without a network: what its own cache holds, what datasets reads from a folder, and what is told where nothing can be had."""

import json

import pytest

from ltune.data import hub
from ltune.data.read import read_file
from ltune.data.sources import Dataset, resolve
from ltune.errors import UsageError

COMMIT = "0" * 40


@pytest.fixture
def folder(tmp_path):
    """A data set of two splits, as `datasets` reads it from a folder."""
    made = tmp_path / "owner" / "name"
    made.mkdir(parents=True)
    for split, rows in (("train", 50), ("test", 3)):
        (made / f"{split}.jsonl").write_text("".join(json.dumps({"text": f"{split} {number}"}) + "\n" for number in range(rows)))
    return made


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """The hub's cache, holding three files of owner/name."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "datasets--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for name in ("a.jsonl", "parts/b.jsonl", "parts/c.jsonl"):
        file = repository / "snapshots" / COMMIT / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"text": name}) + "\n")
    return repository / "snapshots" / COMMIT


def texts(files):
    return [record["text"] for file in files for _, record in read_file(file)]


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("owner/name", ("owner/name", None, None)),
        ("hf://datasets/owner/name", ("owner/name", None, None)),
        ("hf://datasets/owner/name@v1.0", ("owner/name", "v1.0", None)),
        ("hf://datasets/owner/name/data/a.jsonl", ("owner/name", None, "data/a.jsonl")),
        ("hf://datasets/owner/name@main/data/*.parquet", ("owner/name", "main", "data/*.parquet")),
        ("name", None),
        ("a/b/c", None),
    ],
)
def test_addresses(name, parsed):
    assert hub.parse(name) == parsed


def test_an_address_that_is_none_is_refused():
    with pytest.raises(UsageError, match=r"hf://datasets/owner/name\[@revision\]"):
        hub.parse("hf://owner/name/x.jsonl")


def test_a_split_of_a_data_set(folder):
    assert texts(hub.fetch(hub.Place(str(folder)))) == [f"train {number}" for number in range(50)]
    assert texts(hub.fetch(hub.Place(str(folder), split="test"))) == ["test 0", "test 1", "test 2"]


def test_a_part_of_a_split_is_refused_as_all_its_rows_would_be_read(folder):
    with pytest.raises(UsageError, match=r"split is train\[:10\]"):
        hub.fetch(hub.Place(str(folder), split="train[:10]"))


def test_files_by_their_address(cached, tmp_path):
    assert texts(resolve("hf://datasets/owner/name/a.jsonl", tmp_path).files) == ["a.jsonl"]
    assert texts(resolve("hf://datasets/owner/name@main/parts/*.jsonl", tmp_path).files) == ["parts/b.jsonl", "parts/c.jsonl"]
    with pytest.raises(UsageError, match="no file of it is named parts/[*].csv"):
        resolve("hf://datasets/owner/name/parts/*.csv", tmp_path)


@pytest.mark.parametrize(
    "dataset", ["nobody/nothing", "hf://datasets/nobody/nothing/a.jsonl", Dataset("nobody/nothing", streaming=True, max_rows=3)]
)
def test_what_cannot_be_had_is_named_in_two_lines(tmp_path, monkeypatch, dataset):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UsageError, match=r"cannot get data set nobody/nothing \(.*\) from the hub: ") as error:  # the tests run offline
        resolve(dataset, tmp_path)
    assert len(str(error.value).splitlines()) == 2
    assert not [file for file in (tmp_path / "ltune").rglob("*") if file.is_file()]


def test_streaming_keeps_the_first_rows_and_no_more(folder, tmp_path):
    place = hub.Place(str(folder))
    files = hub.stream(place, 5, tmp_path / "cache")
    assert texts(files) == [f"train {number}" for number in range(5)]
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [files[0].name]
    (folder / "train.jsonl").unlink()  # a run that goes on needs the hub no more
    assert hub.stream(place, 5, tmp_path / "cache") == files
    with pytest.raises(UsageError, match="cannot get data set"):
        hub.stream(place, 6, tmp_path / "cache")


def test_streaming_must_know_how_many_rows(tmp_path):
    with pytest.raises(UsageError, match="Set its max_rows"):
        resolve(Dataset("owner/name", streaming=True), tmp_path)
