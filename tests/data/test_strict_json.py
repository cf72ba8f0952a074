"""JSON is JSON, and what is not is told with its line and column."""

from pathlib import Path

import pytest

from ltune.data.rows import BadRow
from ltune.data.strict_json import decoded, encoding_of, parsed
from ltune.errors import UsageError

FILE = Path("a.jsonl")


def test_values():
    assert parsed(FILE, ' {"a": [1, 2.5, "x", null, true]} \n', 3) == {"a": [1, 2.5, "x", None, True]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1,}', "a.jsonl:3: malformed JSON: a comma stands before the closing mark (column 9), got '}'."),
        ("[1, ]", "a.jsonl:3: malformed JSON: a comma stands before the closing mark (column 5), got ']'."),
        ('{"a":\n 1 2}', "a.jsonl:4: malformed JSON: Expecting ',' delimiter (column 4), got '2}'."),
        ("[1,\n NaN]", "a.jsonl:4: malformed JSON: NaN is no JSON; write null or a number."),
        ('{"a": "NaN",\n "b": Infinity}', "a.jsonl:4: malformed JSON: Infinity is no JSON; write null or a number."),
        ('{"b": {"a": 1, "a": 1}}', 'a.jsonl:3: malformed JSON: the key "a" is given twice.'),
        ("1,", "a.jsonl:3: malformed JSON: a comma stands after the value; a line is one value."),
        ("", "a.jsonl:3: malformed JSON: Expecting value (column 1), got the end."),
    ],
)
def test_what_is_none_is_told_with_its_place(text, said):
    with pytest.raises(BadRow) as error:
        parsed(FILE, text, 3)
    assert str(error.value) == said


@pytest.mark.parametrize(("name", "found"), [("utf-16", "UTF-16"), ("utf-16-le", "UTF-16"), ("utf-16-be", "UTF-16"), ("utf-32", "UTF-32")])
def test_other_encodings_are_told_by_the_first_bytes(name, found):
    assert encoding_of('{"a": 1}'.encode(name)) == found
    with pytest.raises(UsageError, match=found):
        decoded(FILE, '{"a": 1}'.encode(name))


def test_utf8_passes_and_what_is_not_is_named_by_its_line():
    assert encoding_of(b"") is None
    assert decoded(FILE, "\ufeffä\n".encode()) == "ä\n"
    with pytest.raises(BadRow, match=r"a\.jsonl:6: not UTF-8 text: invalid start byte \(byte 0xff\)"):
        decoded(FILE, b"a\nb\n\xff", 4)
