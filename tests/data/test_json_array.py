"""An array's items are the same however its text is cut into blocks, and so are the places of what is wrong."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from ltune.data.json_array import Stretch, items
from ltune.data.rows import BadRow
from ltune.errors import UsageError

VALUES = some.recursive(
    some.none() | some.booleans() | some.integers() | some.text(),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(), inner, max_size=3),
    max_leaves=8,
)


def cut(text, size):
    return iter([text[begin : begin + size] for begin in range(0, len(text), size)])


def read(tmp_path, text, size):
    stretch = Stretch(tmp_path / "a.json", cut(text, size))
    assert stretch.skip() == "["
    return list(items(stretch))


@settings(max_examples=200, deadline=None)
@given(some.lists(VALUES, max_size=5), some.integers(1, 40), some.sampled_from([None, 1]), some.booleans())
def test_any_array_in_any_blocks(tmp_path_factory, values, size, indent, ascii):
    text = "\n " + json.dumps(values, indent=indent, ensure_ascii=ascii) + " \n"
    assert read(tmp_path_factory.getbasetemp(), text, size) == values


@pytest.mark.parametrize(
    "text",
    [
        '[{"a": 1},\n{"a" 2}, {"a": 3}]',
        '[{"a": 1}\n {"a": 2}]',
        '[{"a": 1},\n\n]',
        '[{"a": 1}, {"a": "cut off',
        '[{"a": 1}, {"a": 2}',
        '[{"a": 1}] [2]',
        '[{"a": 1}, {"a": tru}]',
        '[{"a": 1}, {"a": "x\ny"}]',
        "[" + "[" * 100_000,
        "[",
    ],
)
def test_a_fault_has_the_same_place_in_any_blocks(tmp_path, text):
    told = set()
    for size in (1, 3, 7, 1000, 1_000_000) if len(text) < 1000 else (50_000, 1_000_000):
        with pytest.raises(UsageError) as error:
            read(tmp_path, text, size)
        told.add(str(error.value))
    assert len({message.split(", got")[0] for message in told}) == 1, told


def test_items_that_are_not_strict_come_as_bad_rows(tmp_path):
    text = '[{"a": 1, "a": 2}, {"b": {"c": NaN}}, {"d": 3}]'
    for size in (1, 5, 1000):
        first, second, third = read(tmp_path, text, size)
        assert (type(first), type(second), third) == (BadRow, BadRow, {"d": 3})
        assert first.reason == 'malformed JSON: the key "a" is given twice.'


def test_no_more_is_held_than_a_stretch(tmp_path):
    row = json.dumps({"text": "word " * 20})
    stretch = Stretch(tmp_path / "a.json", (block for block in ["[" + row, *[", " + row] * 10_000, "]"]))
    stretch.skip()
    assert max(len(stretch.text) for _ in items(stretch)) < 10 * len(row)
