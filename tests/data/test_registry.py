"""dataset_info.json with every key that LLaMA-Factory has."""

import json
from pathlib import Path

import pytest

from ltune.data.registry import entries, entry_of
from ltune.data.sources import resolve
from ltune.errors import UsageError


def entry(found):
    return entry_of("mine", found, Path("data"))


def refusal(found):
    with pytest.raises(UsageError) as error:
        entry(found)
    message = str(error.value)
    assert message.startswith("data set mine in data/dataset_info.json: ")
    assert len(message.splitlines()) <= 5
    return message


def test_every_key_is_known():
    made = entry(
        {
            "hf_hub_url": "owner/name", "ms_hub_url": "x/y", "om_hub_url": "x/y", "formatting": "sharegpt", "ranking": False,
            "subset": "en", "split": "test", "folder": "part", "num_samples": 7,
            "columns": {part: part for part in (
                "prompt", "query", "response", "history", "messages", "system", "tools",
                "images", "videos", "audios", "chosen", "rejected", "kto_tag",
            )},
            "tags": {tag: tag for tag in (
                "role_tag", "content_tag", "user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag",
            )},
        }
    )  # fmt: skip
    assert (made.hub_id, made.file, made.format, made.subset, made.split, made.folder, made.num_samples) == (
        "owner/name", None, "sharegpt", "en", "test", "part", 7,
    )  # fmt: skip


def test_the_hub_goes_before_the_file_as_in_llamafactory():
    assert entry({"file_name": "a.json", "hf_hub_url": "owner/name"}).file is None


def test_ranking_presumes_the_columns_that_llamafactory_presumes():
    ends = {"chosen": "chosen", "rejected": "rejected"}
    assert entry({"file_name": "a", "ranking": True}).columns == {"prompt": "instruction", "query": "input", **ends}
    assert entry({"file_name": "a", "ranking": True, "formatting": "sharegpt"}).columns == {"messages": "conversations", **ends}
    named = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    assert entry({"file_name": "a", "ranking": True, "columns": named}).columns == named


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([], "must be an object"),
        ({}, "neither file_name nor hf_hub_url; got nothing"),
        ({"script_url": "x"}, "script_url (a loading script, which would run foreign code) is not read here"),
        ({"ms_hub_url": "x/y"}, "ms_hub_url (ModelScope's hub) is not read here"),
        ({"cloud_file_name": "s3://x"}, "cloud_file_name (cloud storage) is not read here"),
        ({"file_name": 3}, "file_name must be text; got 3"),
        ({"file_name": "a", "ranking": "yes"}, "ranking must be true or false; got 'yes'"),
        ({"file_name": "a", "num_samples": 0}, "num_samples must be a whole number, 1 or more; got 0"),
        ({"file_name": "a", "columns": ["x"]}, "columns must be an object, part to name; got ['x']"),
        ({"file_name": "a", "columns": {"promt": "x"}}, "columns has 'promt'.\nKnown: prompt, query"),
        ({"file_name": "a", "tags": {"user": "x"}}, "tags has 'user'.\nKnown: role_tag"),
        ({"file_name": "a", "format": "alpaca"}, "the entry has 'format'.\nKnown: file_name"),
    ],
)
def test_what_cannot_be_meant_is_refused(found, words):
    assert words in refusal(found)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"file_name": "gone.json"}, "its file .*gone.json does not exist"),
        ({"file_name": "a.json", "split": "test"}, "for data sets on the hub"),
        ({"hf_hub_url": "no id"}, "hf_hub_url must be owner/name; got no id"),
    ],
)
def test_entries_that_lead_nowhere_are_refused(tmp_path, found, words):
    (tmp_path / "a.json").write_text("[{}]")
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": found}))
    with pytest.raises(UsageError, match=words):
        resolve("mine", tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": {},\n"b" 1}', "dataset_info.json:2: malformed JSON: Expecting ':' delimiter"),
        ('{"a": {}, "a": {}}', 'the key "a" is given twice'),
        ("[]", "must be an object, data set name to its entry"),
    ],
)
def test_a_malformed_registry_is_named_by_line(tmp_path, text, words):
    (tmp_path / "dataset_info.json").write_text(text)
    with pytest.raises(UsageError) as error:
        entries(tmp_path)
    assert words in str(error.value)


def test_without_a_file_there_are_none(tmp_path):
    assert entries(tmp_path) == {}
