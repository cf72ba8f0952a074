"""Whatever a file holds, it becomes rows or a message: never a traceback."""

import gzip
import json
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from ltune.data.formats import rows_of, to_row
from ltune.data.read import KINDS
from ltune.data.rows import Chat, Pair, Rated, Text
from ltune.data.sources import resolve
from ltune.errors import UsageError

TEXTS = some.sampled_from(
    ["", " ", "hi", "<think>a</think>b", "<think>", "\0", "\ud800", "[]", "{}", '{"name": "add"}', "\x1b[31m\n", "true"]
)
ODD = TEXTS | some.none() | some.booleans() | some.integers(-1, 2) | some.floats()
CALLS = some.lists(
    some.fixed_dictionaries({}, optional={"name": ODD, "arguments": ODD, "function": some.dictionaries(some.just("name"), ODD)}), max_size=2
)
ROLES = some.sampled_from(["user", "assistant", "system", "tool", "human", "gpt", "function_call", "observation", "", None, 3, []])
PARTS = some.lists(some.fixed_dictionaries({"type": ODD, "text": ODD}) | ODD, max_size=2)
MESSAGE = some.fixed_dictionaries(
    {},
    optional={
        "role": ROLES, "from": ROLES, "content": ODD | PARTS, "value": ODD, "tool_calls": CALLS | ODD, "function_call": ODD | CALLS,
        "reasoning_content": ODD, "weight": ODD, "images": ODD,
    },
)  # fmt: skip
VALUE = ODD | MESSAGE | some.lists(MESSAGE, max_size=4) | some.lists(some.lists(ODD, max_size=3), max_size=2)
COLUMN = some.sampled_from(
    ["instruction", "input", "output", "history", "system", "tools", "messages", "conversations", "text", "prompt", "completion", "chosen",
     "rejected", "label", "kto_tag", "images", "\x1b[0m"]
)  # fmt: skip
PART = some.sampled_from(
    ["prompt", "query", "response", "history", "messages", "system", "tools", "images", "chosen", "rejected", "kto_tag"]
)


@contextmanager
def well_told():
    """Nothing is raised but what a user is told, in at most 5 lines that steer no terminal."""
    message = ""
    try:
        yield
    except UsageError as error:
        message = str(error)
    lines = message.split("\n")
    assert len(lines) <= 5, message
    assert all(line.isprintable() for line in lines), message


@settings(max_examples=500, deadline=None)
@given(
    some.dictionaries(COLUMN, VALUE, max_size=6),
    some.sampled_from([None, "alpaca", "sharegpt", "openai", "completion", "text"]),
    some.none() | some.dictionaries(PART, COLUMN, max_size=5),
    some.none() | some.just({"role_tag": "role", "content_tag": "content", "user_tag": "user"}),
    some.sampled_from([Chat, Text, Pair, Rated]),
    some.booleans(),
)
def test_any_record(record, format, columns, tags, rows, answered):
    with well_told():
        assert isinstance(to_row("a.jsonl:1", record, format, columns, tags, rows, answered=answered), rows)


GOOD = {
    "jsonl": json.dumps({"instruction": "hi", "output": "Hello!"}).encode() + b"\n",
    "json": json.dumps([{"instruction": "hi", "output": "Hello!"}] * 2).encode(),
    "csv": b'instruction,output\nhi,"Hello,\nyou!"\n',
}


@pytest.mark.parametrize("kind", [*KINDS, ".jsonl.gz"])
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(some.sampled_from(sorted(GOOD)), some.lists(some.tuples(some.integers(0, 200), some.binary(max_size=3)), max_size=3), some.data())
def test_any_bytes(tmp_path, kind, like, changes, data):
    content = GOOD[like]
    for place, new in changes:
        content = content[:place] + new + content[place + data.draw(some.integers(0, 3)) :]
    file = tmp_path / f"a{kind}"
    file.write_bytes(gzip.compress(content)[: data.draw(some.integers(0, 200))] if kind.endswith("gz") else content)
    for bad_rows in ("error", "skip"):
        with well_told():
            list(rows_of(resolve(str(file), tmp_path), Chat, bad_rows=bad_rows))
