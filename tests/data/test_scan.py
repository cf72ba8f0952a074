"""The quick look says what the reader says, and refuses nothing that the reader takes."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from ltune.data import array_scan, contents, scan
from ltune.data.read import read
from ltune.data.sources import Source
from tests.data.told import said

ROW = b'{"instruction": "say it", "output": "it"}'


def by_scan(*files: Path, limit: int | None = None, **options) -> str | None:
    source = Source("rows", files, **options)
    return said(lambda: scan.scan([(source, limit)], files[0].parent / "memory"))


def by_reader(*files: Path, limit: int | None = None, **options) -> str | None:
    return said(lambda: list(islice(read(Source("rows", files, **options)), limit)))


LINES = {
    "no comma": b'{"a": 1 "b": 2}',
    "trailing comma": b'{"a": 1,}',
    "two values": b'{"a": 1} {"a": 2}',
    "comma after": b'{"a": 1},',
    "NaN": b'{"a": NaN}',
    "list": b"[1]",
    "number": b"17",
    "null": b"null",
    "not UTF-8": b'{"a": "\xff"}',
    "cut off": b'{"a": "b',
    "control character": b'{"a": "b\tc"}',
    "text": b"hello",
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
@pytest.mark.parametrize("at", [1, 2, 5000])
def test_a_line_is_refused_in_the_readers_words(tmp_path, line, at):
    path = tmp_path / "rows.jsonl"
    lines = [ROW] * 5000
    lines[at - 1] = line
    path.write_bytes(b"\n".join(lines) + b"\n")
    expected = by_reader(path)
    assert expected is not None
    assert f"rows.jsonl:{at}" in expected
    assert by_scan(path) == expected
    assert by_scan(path, limit=5000) == expected
    assert by_scan(path, limit=at - 1) is None


SOUND = {
    "a mark": b"\xef\xbb\xbf" + ROW,
    "blank lines": b"\n \n" + ROW + b"\n\n\t\n" + ROW,
    "Windows": ROW + b"\r\n" + ROW + b"\r\n",
    "no end": ROW,
    "half a pair": b'{"a": "\\ud800"}',
    "a huge number": b'{"a": 123456789012345678901234567890, "b": 1e999}',
    "deep": b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}",
    "a null byte": b'{"a": "\\u0000"}',
}


@pytest.mark.parametrize("content", SOUND.values(), ids=SOUND)
@pytest.mark.parametrize("kind", [".jsonl", ".ndjson", ".json"])
def test_nothing_is_refused_that_the_reader_takes(tmp_path, content, kind):
    path = tmp_path / f"rows{kind}"
    path.write_bytes(content)
    assert by_reader(path) is None
    assert by_scan(path) is None


@pytest.mark.parametrize("content", [b"", b"\n", b"[\n" + ROW + b"\n]\n", '{"a": 1}\n'.encode("utf-16"), '{"a": 1}\n'.encode("utf-16-le")])
def test_what_is_wrong_with_a_whole_file_is_told_in_the_same_words_or_later(tmp_path, content):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    assert by_scan(path) in (by_reader(path), None)
    assert by_reader(path) is not None


def test_a_key_that_is_given_twice_is_left_to_the_reader(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1, "a": 2}\n')
    assert by_scan(path) is None
    assert "given twice" in by_reader(path)


# -- arrays ---------------------------------------------------------------------------------------------------------------------------

CHAT = {"conversations": [{"from": "human", "value": "a } , {"}, {"from": "gpt", "value": 'b ], [{"conversations": ü'}]}
ITEMS = [CHAT, {**CHAT, "system": '", {"conversations": [', "n": [1, [2, {"conversations": {"conversations": 1}}]]}]


def array(indent: int | None = None, rows: int = 2000) -> str:
    return json.dumps([ITEMS[number % 2] for number in range(rows)], indent=indent, ensure_ascii=False)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr("ltune.data.read.BLOCK", 5000)


@pytest.mark.parametrize("indent", [None, 0, 2])
def test_a_sound_array_passes_the_quick_way(tmp_path, monkeypatch, small_blocks, indent):
    path = tmp_path / "rows.json"
    path.write_text(array(indent))
    singly = []
    monkeypatch.setattr(array_scan, "well_inside", lambda stretch: singly.append(stretch) or iter(()))
    assert by_scan(path) is None
    assert len(singly) < 20  # of some seventy stretches, where one ends right behind an item


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("at", [0.0, 0.5, 0.999])
@pytest.mark.parametrize(
    ("old", "new"), [('"n":', '"n"'), ('"human"', '"human'), ('"gpt",', '"gpt"'), ("1,", "NaN,"), ("2,", "2,,"), ("[", "")]
)
def test_a_fault_in_an_array_is_told_in_the_readers_words(tmp_path, small_blocks, indent, at, old, new):
    path = tmp_path / "rows.json"
    text = array(indent)
    begin = text.index(old, 1 + int(at * len(text)))
    path.write_text(text[:begin] + new + text[begin + len(old) :])
    expected = by_reader(path)
    assert expected is not None
    assert by_scan(path) == expected


@pytest.mark.parametrize("end", ["", "]]", "] x", ",]", ", 3]", ", {}, []]"])
def test_the_end_of_an_array_is_looked_at(tmp_path, small_blocks, end):
    path = tmp_path / "rows.json"
    path.write_text(array()[:-1] + end)
    expected = by_reader(path)
    assert expected is not None
    assert by_scan(path) == expected


def test_rows_whose_keys_come_in_another_order_are_looked_at_too(tmp_path, small_blocks):
    path = tmp_path / "rows.json"
    rows = [{"a": "x" * 50, "b": number} if number % 3 else {"b": number, "a": "x"} for number in range(2000)]
    path.write_text(json.dumps(rows))
    assert by_scan(path) is None
    path.write_text(json.dumps(rows).replace('"b": 1999', '"b" 1999'))
    assert by_scan(path) == by_reader(path) is not None


# -- what is not looked at ------------------------------------------------------------------------------------------------------------


def test_of_several_files_no_more_rows_are_looked_at_than_are_read(tmp_path):
    files = [tmp_path / "1.jsonl", tmp_path / "2.json", tmp_path / "3.jsonl"]
    files[0].write_bytes((ROW + b"\n\n") * 10)
    files[1].write_bytes(b"[" + b",".join([ROW] * 10) + b"]")
    files[2].write_bytes((ROW + b"\n") * 3 + b"oh\n")
    assert by_reader(*files, limit=23) is None
    assert by_scan(*files, limit=23) is None
    assert by_scan(*files, limit=24) == by_reader(*files, limit=24) is not None
    assert by_scan(*files, limit=2, num_samples=5) == by_reader(*files) is not None  # drawn from all


def test_behind_a_file_that_is_not_looked_at_nobody_knows_how_many_rows_are_read(tmp_path):
    files = [tmp_path / "1.csv", tmp_path / "2.jsonl"]
    files[0].write_text("a,b\n1,2\n3,4\n")
    files[1].write_bytes(ROW + b"\noh\n")
    assert by_reader(*files, limit=3) is None
    assert by_scan(*files, limit=4) is None
    assert by_scan(*files) == by_reader(*files) is not None


def test_a_file_that_was_sound_is_not_looked_at_again_until_it_changes_or_something_else_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "SETTLED", -1.0)
    monkeypatch.setattr(contents, "LARGE", 10)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(ROW + b"\n" + ROW + b"\n")
    assert by_scan(path) is None
    looked = []
    monkeypatch.setattr(scan, "_scan_file", lambda path, *_: looked.append(path))
    assert by_scan(path) is None
    assert looked == []
    by_scan(path, limit=1)
    assert looked == [path]
    path.write_bytes(ROW + b"\noh\n")
    by_scan(path)
    assert looked == [path, path]


def test_files_beyond_the_most_are_left_to_the_reader(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"oh\n")
    monkeypatch.setattr(scan, "MOST", 2)
    assert by_scan(path) is None
    source = Source("rows", (tmp_path / "gone.jsonl",))
    scan.scan([(source, None), (replace(source, files=(tmp_path,)), None)], tmp_path)
