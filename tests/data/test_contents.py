"""A large file is hashed once, and again as soon as anything about it changed."""

import json
import os
import time
from hashlib import sha256

import pytest

from ltune.data import contents
from ltune.data.contents import LARGE, content_hash, identity, note_sound, was_sound, while_unchanged
from ltune.errors import UsageError

BYTES = b"a" * LARGE


@pytest.fixture
def file(tmp_path):
    """A large file that was written a while ago, as far as the clock of this module tells."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(BYTES)
    return path


@pytest.fixture(autouse=True)
def _settled(monkeypatch):
    monkeypatch.setattr(contents, "SETTLED", -1.0)


def remember_wrong(memory):
    """Put another hash into the record, to see whether it is taken from there."""
    (record,) = memory.iterdir()
    record.write_text(json.dumps(json.loads(record.read_text()) | {"sha256": "remembered"}))


def test_a_large_file_is_hashed_once(file, tmp_path):
    assert content_hash(file, tmp_path / "memory") == sha256(BYTES).hexdigest()
    remember_wrong(tmp_path / "memory")
    assert content_hash(file, tmp_path / "memory") == "remembered"


def test_what_was_sound_is_so_until_it_changes(file, tmp_path):
    memory = tmp_path / "memory"
    content_hash(file, memory)
    assert not was_sound(file, memory, "objects")
    note_sound(file, memory, "objects", identity(file))
    assert was_sound(file, memory, "objects")
    assert not was_sound(file, memory, "conversations")
    assert content_hash(file, memory) == sha256(BYTES).hexdigest()
    before = identity(file)
    file.write_bytes(BYTES + b"a")
    assert not was_sound(file, memory, "objects")
    note_sound(file, memory, "objects", before)  # it changed while it was looked at
    assert not was_sound(file, memory, "objects")


def test_a_change_of_the_same_length_with_its_time_set_back_is_noticed(file, tmp_path):
    content_hash(file, tmp_path / "memory")
    remember_wrong(tmp_path / "memory")
    before = file.stat()
    time.sleep(0.02)  # the kernel's clock of file times
    with file.open("r+b") as opened:
        opened.write(b"b")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert content_hash(file, tmp_path / "memory") == sha256(b"b" + BYTES[1:]).hexdigest()


def test_another_file_in_its_place_is_noticed(file, tmp_path):
    content_hash(file, tmp_path / "memory")
    remember_wrong(tmp_path / "memory")
    other = tmp_path / "other"
    other.write_bytes(b"c" * LARGE)
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    os.replace(other, file)
    assert content_hash(file, tmp_path / "memory") == sha256(b"c" * LARGE).hexdigest()


def test_a_file_that_was_only_just_written_is_not_remembered(file, tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "SETTLED", 60.0)
    content_hash(file, tmp_path / "memory")
    assert not (tmp_path / "memory").exists()


def test_a_torn_record_and_a_folder_that_cannot_be_written_are_done_without(file, tmp_path):
    content_hash(file, tmp_path / "memory")
    (record,) = (tmp_path / "memory").iterdir()
    record.write_text('{"identity": [')
    assert content_hash(file, tmp_path / "memory") == sha256(BYTES).hexdigest()
    (tmp_path / "no folder").write_text("")
    assert content_hash(file, tmp_path / "no folder") == sha256(BYTES).hexdigest()


def test_a_file_that_changes_while_it_is_read_is_refused(file):
    known = {file: identity(file)}
    assert list(while_unchanged(iter([1, 2]), known)) == [1, 2]
    items = while_unchanged(iter([1, 2]), known)
    assert next(items) == 1
    file.write_bytes(b"other")
    with pytest.raises(UsageError, match="changed while it was read"):
        list(items)


def test_a_small_file_is_hashed_each_time(tmp_path):
    (tmp_path / "small").write_bytes(b"a")
    assert content_hash(tmp_path / "small", tmp_path / "memory") == sha256(b"a").hexdigest()
    assert not (tmp_path / "memory").exists()
