"""Escapes are made letters where nothing else is odd about a block."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as some

from ltune.data.block_signs import ends_within_text, keys_written, without_escapes


@given(some.dictionaries(some.text(max_size=8), some.text(max_size=30), max_size=4), some.booleans())
def test_texts_keep_their_length_and_lose_their_escapes(record, ascii):
    line = json.dumps(record, ensure_ascii=ascii).encode() + b"\n"
    bare = without_escapes(line)
    if bare is None:
        assert any("\0" in text for text in [*record, *record.values()])
        return
    assert len(bare) == len(line)
    assert b"\\" not in bytes(bare)
    assert bytes(bare).count(b'"') == 4 * len(record)
    assert not ends_within_text(bare)


@pytest.mark.parametrize(
    "text",
    [
        rb"\x",
        rb"\u12",
        rb"\u12g4",
        rb"\u0000",
        rb"\ud800",
        rb"\udc00\ud800",
        rb"\ud800x\udc00",
        b"\t",
        b"\xff",
        b"\xed\xa0\x80",
        b"\r",
        b"\\",
    ],
)
def test_what_may_be_a_fault_is_not_made_to_look_like_none(text):
    assert without_escapes(b'{"a": "' + text) is None
    assert without_escapes(b'{"a": "' + text + b'"}\n') is None or text == b"\\"  # which then is a quotation mark


@pytest.mark.parametrize("text", [rb"\ud83d\ude00", rb"\\\\", rb"\\\"", rb"\/\b\f\n\r\t", rb"\u00e4\u4F60", "ä你😀".encode(), b"\x7f"])
def test_what_json_allows_passes(text):
    assert without_escapes(b'{"a": "' + text + b'"}\r\n') is not None


def test_a_line_that_ends_within_a_text_is_noticed():
    assert ends_within_text(b'{"a": "b\nc", "d": "e\nf"}\n')
    assert not ends_within_text(b'{\n"a": "b",\n"d": "e"}\n')


def test_keys_are_counted_as_they_are_written():
    assert keys_written(rb'{"a": "b: \": c", "d" : {"e":1}}') == 3
